/* fastsoftmax: temperature softmax, log-softmax and log-sum-exp of rows of logits.
 *
 * The contract of the library. C99, and clean as C++. SPDX-License-Identifier: BSD-3-Clause
 *
 * Every operation reads a batch, a matrix of `rows` rows of `cols` logits, and treats the rows
 * [row_begin, row_end) of it. Nothing here allocates, starts a thread, keeps state, does I/O or
 * sets errno: any number of threads may work on disjoint row ranges of one batch at once.
 */
#ifndef FASTSOFTMAX_H
#define FASTSOFTMAX_H

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

/* The type of logits and results. */
typedef enum fastsoftmax_dtype {
    FASTSOFTMAX_F32 = 0,
    FASTSOFTMAX_F64 = 1
} fastsoftmax_dtype;

/* The instruction sets a kernel exists for. Numbers are stable; a library holds SCALAR and those
 * of its own architecture. */
typedef enum fastsoftmax_isa {
    FASTSOFTMAX_ISA_SCALAR = 0,
    FASTSOFTMAX_ISA_NEON = 1,
    FASTSOFTMAX_ISA_AVX2 = 2,  /* AVX2 and FMA */
    FASTSOFTMAX_ISA_AVX512 = 3 /* AVX-512 F, DQ, BW and VL */
} fastsoftmax_isa;

typedef enum fastsoftmax_status {
    FASTSOFTMAX_OK = 0,
    FASTSOFTMAX_BAD_ISA = 1,        /* the library holds no kernels for batch->isa */
    FASTSOFTMAX_BAD_DTYPE = 2,      /* batch->dtype is none of fastsoftmax_dtype */
    FASTSOFTMAX_BAD_SHAPE = 3,      /* a negative size, or a row range outside the batch */
    FASTSOFTMAX_BAD_TEMPERATURE = 4 /* a temperature of the range is negative or NaN */
} fastsoftmax_status;

/* A batch of rows. Strides are counted in elements, may be zero or negative, and the entries of a
 * row are adjacent. Pointers need the natural alignment of their element type and no more.
 *
 *   isa                 an instruction set that fastsoftmax_detect_isa() found, or a lesser one of
 *                       the same architecture; one that the CPU lacks ends the process
 *   dtype               of x and of out
 *   rows, cols          may be zero
 *   x, x_stride         the logits: row r starts at x + r*x_stride; never written
 *   temperature         row r has temperature[r*temperature_stride]; 0 as the stride means one
 *                       temperature for all rows. 0 and infinity are meant as the limits
 *   out, out_stride     the result: row r starts at out + r*out_stride. It may be x itself with
 *                       the same stride; any other overlap with x is undefined
 */
typedef struct fastsoftmax_batch {
    fastsoftmax_isa isa;
    fastsoftmax_dtype dtype;
    int64_t rows;
    int64_t cols;
    const void *x;
    int64_t x_stride;
    const double *temperature;
    int64_t temperature_stride;
    void *out;
    int64_t out_stride;
} fastsoftmax_batch;

/* What holds for every operation:
 *
 * - x and out are not touched when the status is not FASTSOFTMAX_OK.
 * - The floating-point environment is assumed to round to nearest and to keep subnormal numbers.
 * - A row's result depends on that row and its temperature alone, to the last bit: not on the
 *   other rows, its place, its alignment, or the row range. It is also the same for every
 *   instruction set.
 * - Special rows come first: a NaN makes the whole row NaN (also its log-sum-exp); else +infinity
 *   makes the row NaN and its log-sum-exp +infinity; a row of only -infinity is NaN and its
 *   log-sum-exp -infinity.
 * - Temperature 0, and one so small that log2(e)/temperature overflows in `dtype`: the mass is
 *   shared evenly by the entries equal to the maximum; the log-sum-exp is max/temperature.
 *   Temperature infinity: uniform over the entries above -infinity; the log-sum-exp is the
 *   logarithm of their number.
 */

/* Probabilities: out[i] = exp(x[i]/T) / sum_j exp(x[j]/T).
 *
 * Error: at most 2 ULP + |x[i] - max|/T * 2^-24 relative (F32), 4 ULP and 2^-53 (F64), over the
 * whole range of results, subnormal ones included.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_softmax(const fastsoftmax_batch *batch,
                                                       int64_t row_begin, int64_t row_end);

/* Log-probabilities: out[i] = x[i]/T - log(sum_j exp(x[j]/T)), without forming the probabilities.
 *
 * The maximum is kept out of the sum and its logarithm is taken as log1p, so a log-probability
 * near 0 keeps its relative precision. Error: at most 2 ULP + 1e-7 (F32), 4 ULP + 1e-15 (F64).
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_log_softmax(const fastsoftmax_batch *batch,
                                                           int64_t row_begin, int64_t row_end);

/* out[0] of each row = log(sum_j exp(x[j]/T)); out_stride is the distance between two results.
 *
 * -infinity where cols is 0. At a temperature of exactly 0 there is no limit:
 * FASTSOFTMAX_BAD_TEMPERATURE. Error: as log_softmax.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_logsumexp(const fastsoftmax_batch *batch,
                                                         int64_t row_begin, int64_t row_end);

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
