/* Which instruction sets this CPU and its operating system offer. */
#include "internal.h"

#if defined(FSM_X86)

#if defined(_MSC_VER)
#  include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    int out[4];
    __cpuidex(out, (int)leaf, (int)subleaf);
    for (int i = 0; i < 4; ++i)
        r[i] = (uint32_t)out[i];
}
static uint64_t xgetbv0(void) { return _xgetbv(0); }
#else
#  include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
}
static uint64_t xgetbv0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}
#endif

static int has(uint32_t word, int bit) { return (int)(word >> bit) & 1; }

fastsoftmax_isa fastsoftmax_detect_isa(void)
{
    uint32_t leaf0[4], leaf1[4], leaf7[4];
    cpuid(0, 0, leaf0);
    if (leaf0[0] < 7)
        return FASTSOFTMAX_ISA_SCALAR;
    cpuid(1, 0, leaf1);
    cpuid(7, 0, leaf7);
    /* OSXSAVE, then the register state that the system saves: 0x6 is SSE and AVX, 0xe0 the mask
     * registers and both parts of the 512-bit ones. */
    if (!has(leaf1[2], 27))
        return FASTSOFTMAX_ISA_SCALAR;
    const uint64_t saved = xgetbv0();
    if ((saved & 0x6) != 0x6 || !has(leaf1[2], 12) /* FMA */ ||
        !has(leaf1[2], 29) /* F16C */ || !has(leaf7[1], 5) /* AVX2 */)
        return FASTSOFTMAX_ISA_SCALAR;
#if defined(__APPLE__)
    return FASTSOFTMAX_ISA_AVX2; /* Darwin has lost the mask registers in signal handlers */
#else
    if ((saved & 0xe0) != 0xe0 || !has(leaf7[1], 16) /* F */ || !has(leaf7[1], 17) /* DQ */ ||
        !has(leaf7[1], 30) /* BW */ || !has(leaf7[1], 31) /* VL */)
        return FASTSOFTMAX_ISA_AVX2;
    return FASTSOFTMAX_ISA_AVX512;
#endif
}

int fastsoftmax_has_isa(fastsoftmax_isa isa)
{
    return isa == FASTSOFTMAX_ISA_SCALAR ||
           ((isa == FASTSOFTMAX_ISA_AVX2 || isa == FASTSOFTMAX_ISA_AVX512) &&
            isa <= fastsoftmax_detect_isa());
}

#else

fastsoftmax_isa fastsoftmax_detect_isa(void)
{
#if defined(FSM_ARM64)
    return FASTSOFTMAX_ISA_NEON; /* part of the architecture's baseline */
#else
    return FASTSOFTMAX_ISA_SCALAR;
#endif
}

int fastsoftmax_has_isa(fastsoftmax_isa isa)
{
    return isa == FASTSOFTMAX_ISA_SCALAR || isa == fastsoftmax_detect_isa();
}

#endif
