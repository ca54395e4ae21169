"""What distinguishes encoder classes."""

import pytest

from tokpipe.models.process import cpu_class

AMX = "sse4_1 avx avx2 avx_vnni avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile"
ZEN4 = "sse4_1 avx avx2 avx512bw avx512_vnni avx512_bf16"
CASCADE_LAKE = "sse4_1 avx avx2 avx512bw avx512_vnni"


def x86(flags: str, model: str = "X 1", *, aten: str = "AVX512", **caps: str) -> str:
    cpuinfo = f"processor\t: 0\nvendor_id\t: V\nmodel name\t: {model}\nflags\t\t: {flags}\n\n"
    return cpu_class("x86_64", aten, cpuinfo * 2, caps)


ARM = "Features\t: fp asimd sve bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
OF_AMX = "amx_bf16 avx2 avx512_bf16 avx512_fp16 avx512bw"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (x86(AMX), f"cpu x86_64 X 1 AVX512 {OF_AMX}"),
        (x86(ZEN4, "EPYC 9654:  96-Core"), "cpu x86_64 EPYC 9654: 96-Core AVX512 "
         "avx2 avx512_bf16 avx512bw"),
        (x86(CASCADE_LAKE), x86(CASCADE_LAKE.replace(" avx512_vnni", ""))),  # for integers
        (x86(AMX, DNNL_MAX_CPU_ISA="avx2"), f"cpu x86_64 X 1 AVX512 {OF_AMX} oneDNN <= AVX2"),
        (x86(AMX, ONEDNN_MAX_CPU_ISA="AVX", DNNL_MAX_CPU_ISA="AVX2"),
         x86(AMX, ONEDNN_MAX_CPU_ISA="avx")),
        (x86(AMX, aten="AVX2"), f"cpu x86_64 X 1 AVX2 {OF_AMX}"),
        (cpu_class("aarch64", "SVE256", ARM, {}), "cpu aarch64 0x41 0xd40 SVE256 bf16 sve"),
    ],
)  # fmt: skip
def test_a_class_names_what_can_round_differently(found: str, says: str) -> None:
    assert found == says


def test_two_models_of_one_vendor_are_two_classes() -> None:
    assert x86(AMX, "Xeon 8481C") != x86(AMX, "Xeon 8581C")


def test_a_cpu_without_cpuinfo_is_named_by_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert cpu_class("arm64", "DEFAULT", "", {}) == "cpu arm64 arm DEFAULT"
