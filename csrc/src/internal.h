/* What the parts of the library share; not installed. */
#ifndef FSM_INTERNAL_H
#define FSM_INTERNAL_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fastsoftmax.h"

#if defined(_MSC_VER)
#  include <intrin.h>
#endif

/* MSVC itself, not clang in its place. */
#if defined(_MSC_VER) && !defined(__clang__)
#  define FSM_MSVC 1
#endif

#if defined(FSM_MSVC)
#  define FSM_INLINE static __forceinline
#  define FSM_UNROLL
#else
#  define FSM_INLINE static inline __attribute__((always_inline, unused))
#  define FSM_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__x86_64__) || defined(_M_X64)
#  define FSM_X86 1
#elif defined(__aarch64__) || defined(_M_ARM64)
#  define FSM_ARM64 1
#endif

/* Between these two, functions may use the named instructions: no compiler flag is needed, and one
 * binary holds the kernels of every instruction set. MSVC takes intrinsics as they are. */
#define FSM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#  define FSM_TARGET_BEGIN(names)                                                                 \
      FSM_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#  define FSM_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#  define FSM_TARGET_BEGIN(names) _Pragma("GCC push_options") FSM_PRAGMA(GCC target(names))
#  define FSM_TARGET_END _Pragma("GCC pop_options")
#else
#  define FSM_TARGET_BEGIN(names)
#  define FSM_TARGET_END
#endif

#define FSM_CAT_(a, b) a##b
#define FSM_CAT(a, b) FSM_CAT_(a, b)

/* How a row is cut; the same for every type and instruction set. */
enum {
    STEP = 16,          /* virtual lanes: entry i of a block belongs to lane i % STEP */
    GROUP = 8 * STEP,   /* entries that are added as a tree in the row's own type */
    BLOCK = 16 * GROUP, /* entries that share a maximum; 8 KB of float */
    TILE = 96,          /* rows that the column kernel treats at once, at most, */
    NARROW_TILE = 64,   /* and for all but softmax of one block around the caches */
    FSM_PAGE = 4096     /* bytes after which places in memory look alike to a CPU */
};

/* The kernels of one instruction set and one arithmetic type. The batch has been checked. */
typedef struct fsm_kernels {
    void (*rows)(const fastsoftmax_batch *batch, fastsoftmax_op op, int64_t begin, int64_t end,
                 void *scratch);
    void (*reduce_blocks)(const fastsoftmax_batch *batch, fastsoftmax_op op, int64_t row,
                          int64_t begin, int64_t end, void *shared, void *scratch);
    void (*merge_blocks)(const fastsoftmax_batch *batch, fastsoftmax_op op, int64_t row,
                         void *shared, void *scratch);
    void (*write_blocks)(const fastsoftmax_batch *batch, fastsoftmax_op op, int64_t row,
                         int64_t begin, int64_t end, void *shared, void *scratch);
    size_t (*scratch_size)(int64_t cols);
    size_t (*scoring_size)(int64_t cols); /* what scoring needs of that */
    void (*token_logprobs)(const fastsoftmax_batch *batch, const int64_t *ids, int64_t m,
                           double *logprobs, int64_t *ranks, double *mean, int64_t begin,
                           int64_t end, void *scratch);
    void (*topk)(const fastsoftmax_batch *batch, int64_t k, int64_t *ids, double *logprobs,
                 int64_t begin, int64_t end, void *scratch);
    size_t (*best_size)(int64_t k); /* what topk needs beside scoring_size */
    void (*moments)(const fastsoftmax_batch *batch, double *out, int64_t begin, int64_t end,
                    void *scratch);
    void (*reduce)(const fastsoftmax_batch *batch, double *maximum, double *rest, int64_t begin,
                   int64_t end, void *scratch);
    void (*normalize)(const fastsoftmax_batch *batch, const double *maximum, const double *rest,
                      int logarithm, int64_t begin, int64_t end, void *scratch);
    size_t (*draw_size)(int64_t cols, int64_t top_k); /* what follows needs beside scoring_size */
    void (*sample)(const fastsoftmax_batch *batch, const fastsoftmax_filters *filters,
                   const double *uniforms, int64_t draws, int replace, int64_t *ids,
                   double *logprobs, int64_t begin, int64_t end, void *scratch);
    void (*count_survivors)(const fastsoftmax_batch *batch, const fastsoftmax_filters *filters,
                            int64_t *counts, int64_t begin, int64_t end, void *scratch);
    void (*survivors)(const fastsoftmax_batch *batch, const fastsoftmax_filters *filters,
                      const int64_t *offsets, int64_t *ids, double *logprobs, int64_t begin,
                      int64_t end, void *scratch);
} fsm_kernels;

/* The kernels of one instruction set, for float and double. */
typedef struct fsm_kernel_table {
    fsm_kernels type[2];
    void (*kl_divergence)(const fastsoftmax_batch *p, const fastsoftmax_batch *q, double *out,
                          int64_t begin, int64_t end, void *scratch);
} fsm_kernel_table;

/* Not for a shared object that the library is a part of to export. */
#if defined(__GNUC__) && !defined(_WIN32)
#  define FSM_HIDDEN __attribute__((visibility("hidden")))
#else
#  define FSM_HIDDEN
#endif
FSM_HIDDEN extern const fsm_kernel_table fsm_table_scalar;
#if defined(FSM_X86)
FSM_HIDDEN extern const fsm_kernel_table fsm_table_avx2;
FSM_HIDDEN extern const fsm_kernel_table fsm_table_avx512;
#elif defined(FSM_ARM64)
FSM_HIDDEN extern const fsm_kernel_table fsm_table_neon;
#endif

/* Sizes of a batch. */
FSM_INLINE int64_t fsm_count(const fastsoftmax_axis *axes, int count)
{
    int64_t n = 1;
    for (int i = 0; i < count; ++i)
        n *= axes[i].size;
    return n;
}
FSM_INLINE int64_t fsm_rows(const fastsoftmax_batch *batch)
{
    return fsm_count(batch->axes, batch->row_axes);
}
FSM_INLINE int64_t fsm_cols(const fastsoftmax_batch *batch)
{
    return fsm_count(batch->axes + batch->row_axes, batch->col_axes);
}

FSM_INLINE size_t fsm_size_of(fastsoftmax_dtype dtype)
{
    return dtype == FASTSOFTMAX_F64 ? 8 : dtype == FASTSOFTMAX_F32 ? 4 : 2;
}

/* Sums of the lanes of a tile, for each lane those of every column, and what they are short of. */
typedef struct fsm_lanes {
    double *sums, *errors;
} fsm_lanes;

/* Where the entry number `index` of some axes lies, and how many more follow on the last axis. */
typedef struct fsm_place {
    int64_t x, out, where, temperature, run, row;
} fsm_place;

FSM_INLINE fsm_place fsm_locate(const fastsoftmax_axis *axes, int count, int64_t index)
{
    fsm_place place = {0, 0, 0, 0, 1, index};
    for (int i = count - 1; i >= 0; --i) {
        const fastsoftmax_axis *axis = &axes[i];
        const int64_t at = i == 0 ? index : index % axis->size;
        index = i == 0 ? 0 : index / axis->size;
        place.x += at * axis->x;
        place.out += at * axis->out;
        place.where += at * axis->where;
        place.temperature += at * axis->temperature;
        if (i == count - 1)
            place.run = axis->size - at;
    }
    return place;
}

/* The place of the lowest bit that is set. */
FSM_INLINE int fsm_lowest_bit(uint32_t bits)
{
#if defined(FSM_MSVC)
    unsigned long place;
    _BitScanForward(&place, bits);
    return (int)place;
#else
    return __builtin_ctz(bits);
#endif
}

/* How many bits are set. */
FSM_INLINE int fsm_count_bits(uint32_t bits)
{
    bits -= bits >> 1 & 0x55555555u;
    bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
    return (int)(((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24);
}

/* v_places for a vocabulary without a compression: see vec_scalar.h. */
FSM_INLINE int fsm_places(uint32_t *id, uint32_t first, uint32_t bits)
{
    int places = 0;
    for (; bits; bits &= bits - 1)
        id[places++] = first + (uint32_t)fsm_lowest_bit(bits);
    return places;
}

/* And for v_squeeze. */
#define FSM_SQUEEZE_BY_BITS(name, T)                                                              \
    FSM_INLINE int name(T *value, uint32_t *id, double *weight, int64_t from, int64_t to,         \
                        uint32_t bits)                                                            \
    {                                                                                             \
        int kept = 0;                                                                             \
        for (; bits; bits &= bits - 1, ++kept) {                                                  \
            const int64_t at = from + fsm_lowest_bit(bits);                                       \
            value[to + kept] = value[at];                                                         \
            id[to + kept] = id[at];                                                               \
            weight[to + kept] = weight[at];                                                       \
        }                                                                                         \
        return kept;                                                                              \
    }

/* Numbers of 16 bits, one at a time. */
FSM_INLINE float fsm_float_of_bits(uint32_t bits)
{
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
FSM_INLINE uint32_t fsm_bits_of_float(float a)
{
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
FSM_INLINE float fsm_float_of_bfloat(uint16_t h) { return fsm_float_of_bits((uint32_t)h << 16); }
FSM_INLINE uint16_t fsm_bfloat_of_float(float a)
{
    const uint32_t bits = fsm_bits_of_float(a);
    return a != a ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
FSM_INLINE float fsm_float_of_half(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) /* infinity and NaN */
        return fsm_float_of_bits(sign | 0x7f800000u | rest);
    /* 2^112 brings the exponent's bias from 15 to 127, of subnormal numbers too. */
    return fsm_float_of_bits(sign | fsm_bits_of_float(fsm_float_of_bits(rest) * 0x1p112f));
}
FSM_INLINE uint16_t fsm_half_of_float(float a)
{
    const uint32_t bits = fsm_bits_of_float(a), sign = bits >> 16 & 0x8000;
    const float size = fabsf(a);
    if (a != a)
        return (uint16_t)(sign | 0x7e00);
    if (size >= 65520.0f)
        return (uint16_t)(sign | 0x7c00);
    if (size < 0x1p-14f) /* a half's spacing there is that of float from 2^-1 up */
        return (uint16_t)(sign | (fsm_bits_of_float(size + 0.5f) - 0x3f000000u));
    const uint32_t rounded = (bits & 0x7fffffffu) + 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | ((rounded - (112u << 23)) >> 13));
}
/* The float next to `a` with an odd last bit, unless `a` is a float: rounding that to a narrower type
 * is then as rounding `a` (Boldo and Melquiond 2008). */
FSM_INLINE float fsm_odd_float_of_double(double a)
{
    const float f = (float)a;
    if ((double)f == a || f != f)
        return f;
    const uint32_t bits = fsm_bits_of_float(f);
    return fsm_float_of_bits((fabs((double)f) > fabs(a) ? bits - 1 : bits) | 1);
}

#endif
