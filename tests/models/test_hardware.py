"""What distinguishes encoder classes."""

import pytest

from tokpipe.models.hardware import cpu_class

AMX = "sse4_1 avx avx2 avx_vnni avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile"
ZEN4 = "sse4_1 avx avx2 avx512bw avx512_vnni avx512_bf16"
CASCADE_LAKE = "sse4_1 avx avx2 avx512bw avx512_vnni"


def x86(flags: str, vendor: str = "GenuineIntel", *, aten: str = "AVX512", **caps: str) -> str:
    cpuinfo = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: X: 1\nflags\t\t: {flags}\n\n"
    return cpu_class("x86_64", aten, cpuinfo * 2, caps)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (x86(AMX), "cpu x86_64 GenuineIntel AVX512 oneDNN AVX512_CORE_AMX"),
        (x86(ZEN4, "AuthenticAMD"), "cpu x86_64 AuthenticAMD AVX512 oneDNN AVX512_CORE_BF16"),
        (x86(CASCADE_LAKE), x86(CASCADE_LAKE.replace(" avx512_vnni", ""))),  # for integers
        (x86(AMX, ONEDNN_MAX_CPU_ISA="avx512_core_vnni"), x86(CASCADE_LAKE)),
        (x86(AMX, DNNL_MAX_CPU_ISA="AVX2"), "cpu x86_64 GenuineIntel AVX512 oneDNN AVX2"),
        (x86(AMX, ONEDNN_MAX_CPU_ISA="ALL", DNNL_MAX_CPU_ISA="AVX2"), x86(AMX)),
        (x86(AMX, aten="AVX2"), "cpu x86_64 GenuineIntel AVX2 oneDNN AVX512_CORE_AMX"),
        (
            cpu_class(
                "aarch64",
                "SVE256",
                "Features\t: fp asimd sve bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n",
                {},
            ),
            "cpu aarch64 0x41 0xd40 SVE256 sve bf16",
        ),
        (cpu_class("arm64", "DEFAULT", "", {}), "cpu arm64 DEFAULT"),
    ],
)
def test_a_class_names_what_can_round_differently(found: str, says: str) -> None:
    assert found == says
