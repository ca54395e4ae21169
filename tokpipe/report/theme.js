// Light, dark, or as the system has it. Without this script the page follows the system.
(() => {
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = "auto";
  try {
    theme = localStorage.getItem("tokpipe-theme") ?? theme;
  } catch {} // files may have no storage
  show(themes.includes(theme) ? theme : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3];
    show(next);
    try {
      localStorage.setItem("tokpipe-theme", next);
    } catch {}
  });
})();
