"""Published layouts, by name. A template file that names one gives the rest."""

from typing import Any

_EMU3_SPECIAL = {
    "pad": "<|endoftext|>",
    "eol": "<|extra_200|>",
    "eof": "<|extra_201|>",
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "img": "<|image token|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
}
_CODES = [{"size": 32768, "pattern": "<|visual token {:06d}|>"}]
_EMU3_VOCABULARY = {"codes": _CODES, "special": _EMU3_SPECIAL, "pad": "pad"}
_IMAGE = "{boi}{h}*{w}{img}{rows:{row}{eol}}{eof}{eoi}"

PRESETS: dict[str, dict[str, Any]] = {
    # Emu3FeatureDataset of github.com/baaivision/Emu3; its images are clips of one frame.
    "emu3": {
        "template": "{bos}{caption}{boi}{h}*{w}{img}{frames:{rows:{row}{eol}}{eof}}{eoi}",
        "vocabulary": _EMU3_VOCABULARY,
    },
    # format_video_prompt of github.com/baaivision/UniVLA: video, without row ends.
    "emu3_video": {
        "template": "{bos}{caption}{boi}{t}*{h}*{w}{img}{frames:{frame}{eof}}{eoi}",
        "vocabulary": _EMU3_VOCABULARY,
    },
    # Text before each frame, which is an image in the form of Emu3.
    "interleaved": {
        "template": f"{{bos}}{{frames:{{caption}}{_IMAGE}}}{{eos}}",
        "vocabulary": _EMU3_VOCABULARY,
    },
}
