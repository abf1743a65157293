/* fastsoftmax: temperature softmax, log-softmax and log-sum-exp of rows of logits.
 *
 * The contract of the library. C99, and clean as C++. SPDX-License-Identifier: BSD-3-Clause
 *
 * Every operation reads a batch, rows of logits of any layout, and treats the rows
 * [row_begin, row_end) of it. Nothing here allocates, starts a thread, keeps state, does I/O or
 * sets errno: any number of threads may work on disjoint row ranges of one batch at once, each with
 * scratch memory of its own.
 */
#ifndef FASTSOFTMAX_H
#define FASTSOFTMAX_H

#include <stddef.h>
#include <stdint.h>

#define FASTSOFTMAX_VERSION_MAJOR 0
#define FASTSOFTMAX_VERSION_MINOR 1
#define FASTSOFTMAX_VERSION_PATCH 0

#if defined(FASTSOFTMAX_STATIC)
#  define FASTSOFTMAX_API
#elif defined(_WIN32)
#  if defined(FASTSOFTMAX_BUILDING)
#    define FASTSOFTMAX_API __declspec(dllexport)
#  else
#    define FASTSOFTMAX_API __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define FASTSOFTMAX_API __attribute__((visibility("default")))
#else
#  define FASTSOFTMAX_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The type of logits and results. Numbers are stable. */
typedef enum fastsoftmax_dtype {
    FASTSOFTMAX_F32 = 0,
    FASTSOFTMAX_F64 = 1,
    FASTSOFTMAX_F16 = 2, /* IEEE binary16 */
    FASTSOFTMAX_BF16 = 3 /* the upper half of a binary32 */
} fastsoftmax_dtype;

/* The instruction sets a kernel exists for. Numbers are stable; a library holds SCALAR and those
 * of its own architecture. */
typedef enum fastsoftmax_isa {
    FASTSOFTMAX_ISA_SCALAR = 0,
    FASTSOFTMAX_ISA_NEON = 1,
    FASTSOFTMAX_ISA_AVX2 = 2,  /* AVX2, FMA and F16C */
    FASTSOFTMAX_ISA_AVX512 = 3 /* AVX-512 F, DQ, BW and VL beside those */
} fastsoftmax_isa;

typedef enum fastsoftmax_status {
    FASTSOFTMAX_OK = 0,
    FASTSOFTMAX_BAD_ISA = 1,         /* the library holds no kernels for batch->isa */
    FASTSOFTMAX_BAD_DTYPE = 2,       /* a dtype is none of fastsoftmax_dtype */
    FASTSOFTMAX_BAD_SHAPE = 3,       /* a negative size, or a range outside the batch */
    FASTSOFTMAX_BAD_TEMPERATURE = 4, /* a temperature of the range is negative or NaN */
    FASTSOFTMAX_BAD_POINTER = 5      /* a pointer that is needed is NULL */
} fastsoftmax_status;

/* One axis of a batch: its length, and how far apart neighbours on it are in each array, counted in
 * elements. Strides may be zero or negative. `temperature` counts on row axes only; `out` counts on
 * column axes only where the operation writes a row. */
typedef struct fastsoftmax_axis {
    int64_t size;
    int64_t x;
    int64_t out;
    int64_t where;
    int64_t temperature;
} fastsoftmax_axis;

/* A batch of rows. The row axes number the rows, the last one fastest, and the column axes the
 * entries of a row likewise. Pointers need the natural alignment of their element type, no more.
 *
 *   isa            an instruction set that fastsoftmax_detect_isa() found, or a lesser one of the
 *                  same architecture; one that the CPU lacks ends the process
 *   x_dtype        of the logits
 *   out_dtype      of the result. The arithmetic is done in double where either of the two is F64,
 *                  else in float with sums in double
 *   row_axes       how many of the axes are row axes; the others are column axes
 *   col_axes       how many those are. No axes make one row, or one entry
 *   axes           row_axes + col_axes of them
 *   x              the logits, never written
 *   where          NULL, or one byte for each entry of x: 0 means that the entry is masked. What a
 *                  masked entry holds is never looked at
 *   temperature    of each row; 0 and infinity are meant as the limits
 *   out            the result. It may be x itself with the same dtype and strides; any other
 *                  overlap with x, where or temperature is undefined
 */
typedef struct fastsoftmax_batch {
    fastsoftmax_isa isa;
    fastsoftmax_dtype x_dtype;
    fastsoftmax_dtype out_dtype;
    int32_t row_axes;
    int32_t col_axes;
    const fastsoftmax_axis *axes;
    const void *x;
    const uint8_t *where;
    const double *temperature;
    void *out;
} fastsoftmax_batch;

/* How many bytes of scratch memory a call on this batch needs: at most 1 MB while a row is shorter
 * than some millions of entries, then 24 bytes for every 2048 entries of a row. 0 for a batch that
 * a call would refuse. The memory is the caller's, aligned to 64 bytes, and holds nothing between
 * two calls; no two threads may share it but as fastsoftmax_reduce_blocks says. */
FASTSOFTMAX_API size_t fastsoftmax_scratch_size(const fastsoftmax_batch *batch);

/* What holds for every operation:
 *
 * - x and out are not touched when the status is not FASTSOFTMAX_OK.
 * - The floating-point environment is assumed to round to nearest and to keep subnormal numbers.
 * - A row's result depends on that row, its mask, its temperature and the two dtypes alone, to the
 *   last bit: not on the other rows, its place, its alignment, its layout, or the row range. It is
 *   also the same for every instruction set.
 * - Special rows come first: a NaN makes the whole row NaN (also its log-sum-exp); else +infinity
 *   makes the row NaN and its log-sum-exp +infinity; a row of only -infinity is NaN and its
 *   log-sum-exp -infinity. Masked entries stay what a masked entry gets even there.
 * - Temperature 0, and one so small that log2(e)/temperature overflows in the arithmetic: the mass
 *   is shared evenly by the entries equal to the maximum; the log-sum-exp is max/temperature.
 *   Temperature infinity: uniform over the entries above -infinity; the log-sum-exp is the
 *   logarithm of their number.
 * - Outputs of 4 MB and more are written around the caches where the hardware can.
 */

/* Probabilities: out[i] = exp(x[i]/T) / sum_j exp(x[j]/T); 0 for a masked entry.
 *
 * Error: at most 2 ULP + |x[i] - max|/T * 2^-24 relative (float), 4 ULP and 2^-53 (double), over
 * the whole range of results, subnormal ones included.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_softmax(const fastsoftmax_batch *batch,
                                                       int64_t row_begin, int64_t row_end,
                                                       void *scratch);

/* Log-probabilities: out[i] = x[i]/T - log(sum_j exp(x[j]/T)), without forming the probabilities;
 * -infinity for a masked entry.
 *
 * The maximum is kept out of the sum and its logarithm is taken as log1p, so a log-probability
 * near 0 keeps its relative precision. Error: at most 2 ULP + 1e-7 (float), 4 ULP + 1e-15 (double).
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_log_softmax(const fastsoftmax_batch *batch,
                                                           int64_t row_begin, int64_t row_end,
                                                           void *scratch);

/* One number a row: log(sum_j exp(x[j]/T)) over the entries that are not masked.
 *
 * -infinity where there are none. At a temperature of exactly 0 there is no limit:
 * FASTSOFTMAX_BAD_TEMPERATURE. Error: as log_softmax.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_logsumexp(const fastsoftmax_batch *batch,
                                                         int64_t row_begin, int64_t row_end,
                                                         void *scratch);

/* One row by several threads. A row of n entries has fastsoftmax_block_count(batch) blocks:
 *
 *   1. fastsoftmax_reduce_blocks on ranges that make up all blocks, by any threads at once
 *   2. fastsoftmax_merge_blocks, once
 *   3. fastsoftmax_write_blocks on ranges that make up all blocks, by any threads at once
 *
 * `shared` is one scratch memory for all of these calls; `scratch` is each thread's own, of the same
 * size. `op` is the same throughout. The bits are those of the whole-row functions. */
typedef enum fastsoftmax_op {
    FASTSOFTMAX_OP_SOFTMAX = 0,
    FASTSOFTMAX_OP_LOG_SOFTMAX = 1,
    FASTSOFTMAX_OP_LOGSUMEXP = 2
} fastsoftmax_op;

FASTSOFTMAX_API int64_t fastsoftmax_block_count(const fastsoftmax_batch *batch);
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_reduce_blocks(const fastsoftmax_batch *batch,
                                                             fastsoftmax_op op, int64_t row,
                                                             int64_t block_begin, int64_t block_end,
                                                             void *shared, void *scratch);
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_merge_blocks(const fastsoftmax_batch *batch,
                                                            fastsoftmax_op op, int64_t row,
                                                            void *shared, void *scratch);
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_write_blocks(const fastsoftmax_batch *batch,
                                                            fastsoftmax_op op, int64_t row,
                                                            int64_t block_begin, int64_t block_end,
                                                            void *shared, void *scratch);

/* What most calls are, in one call without a batch: `rows` rows of `cols` entries, one after another
 * without a gap, no mask, one temperature, the result likewise and of the same dtype.
 *
 * `out` may be `x` where the operation writes rows. A pointer that is not aligned, and an `out` that
 * overlaps `x` in any other way, is FASTSOFTMAX_BAD_POINTER. The scratch memory is that of the
 * batch; 1 MB, aligned to 64 bytes, is enough for rows of up to a million entries. The bits are
 * those of the functions above. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_contiguous(fastsoftmax_op op, fastsoftmax_isa isa,
                                                          fastsoftmax_dtype dtype, int64_t rows,
                                                          int64_t cols, const void *x,
                                                          double temperature, void *out,
                                                          void *scratch);

/* The best instruction set of this library that the CPU has and the operating system saves the
 * registers of. Asks the CPU each time (some microseconds in a virtual machine): keep the answer.
 */
FASTSOFTMAX_API fastsoftmax_isa fastsoftmax_detect_isa(void);

/* 1 if this library holds kernels for `isa` and the CPU can run them, else 0. */
FASTSOFTMAX_API int fastsoftmax_has_isa(fastsoftmax_isa isa);

/* The version as "major.minor.patch"; static storage. */
FASTSOFTMAX_API const char *fastsoftmax_version(void);

#ifdef __cplusplus
}
#endif
#endif
