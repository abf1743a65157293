/* fastsoftmax: probabilities, log-probabilities, losses and samples of rows of logits.
 *
 * The contract of the library. C99, and clean as C++. SPDX-License-Identifier: BSD-3-Clause
 *
 * Every operation reads a batch, rows of logits of any layout, and treats the rows
 * [row_begin, row_end) of it. Nothing here allocates, starts a thread, keeps state, does I/O, reads
 * the environment or sets errno: any number of threads may work on disjoint row ranges of one batch
 * at once, each with scratch memory of its own.
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

/* What functions return. Of several that apply it may be any; temperatures outside the row range are
 * not looked at. */
typedef enum fastsoftmax_status {
    FASTSOFTMAX_OK = 0,
    FASTSOFTMAX_BAD_ISA = 1,         /* the library holds no kernels for batch->isa */
    FASTSOFTMAX_BAD_DTYPE = 2,       /* a dtype is none of fastsoftmax_dtype */
    FASTSOFTMAX_BAD_SHAPE = 3,       /* a negative size, more than 2^56 rows or entries of a row, a
                                      * range outside the batch, a k or a number of draws that does
                                      * not fit, two batches that differ */
    FASTSOFTMAX_BAD_TEMPERATURE = 4, /* a temperature is negative, NaN, or 0 for logsumexp */
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

/* Changes to single logits, made as they are read. Of row r they are the entries
 * [offsets[r], offsets[r + 1]) of the arrays, by ascending id, none twice. The logit x becomes y, in
 * double, rounded to the type of the arithmetic:
 *
 *     y = x + bias;  y = y > 0 ? y / penalty : y * penalty;  y = y - reduction
 */
typedef struct fastsoftmax_edits {
    const int64_t *offsets;
    const int64_t *ids;
    const double *bias;
    const double *penalty;
    const double *reduction;
} fastsoftmax_edits;

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
 *   bitmask        NULL, or 32 entries a word: entry v of row r is masked where bit v % 32 of
 *                  bitmask[r*bitmask_stride + v/32] is 0. With `where`, either masks
 *   bitmask_stride words from row to row
 *   edits          NULL, or changes to single logits
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
    const uint32_t *bitmask;
    int64_t bitmask_stride;
    const fastsoftmax_edits *edits;
} fastsoftmax_batch;

/* What holds for every operation:
 *
 * Sizes       An axis may have size 0. No rows, or an empty range: nothing is read or written, and
 *             array pointers may be NULL. No columns: x may be NULL, and a result of one number a
 *             row is that of a row with all masked. The sizes of a batch have to multiply to at
 *             most INT64_MAX, and every entry to lie in memory.
 * Strides     Elements, of any sign; 0 repeats an entry (of x, where and temperature).
 * Alignment   That of the element type; scratch memory 64 bytes.
 * Aliasing    Results may overlap nothing that is read, and no other results, but that `out` may be
 *             x as fastsoftmax_batch says. Arrays that are read may overlap one another.
 * Threads     Disjoint row ranges of a batch at once, from any threads. Scratch memory belongs to
 *             one call at a time and holds nothing between two calls, but for that which the
 *             functions on blocks share.
 * Status      Nothing is written when it is not FASTSOFTMAX_OK. Not checked, and undefined: a NULL
 *             batch, axes or scratch, too little scratch memory, an `isa` that the CPU lacks, and
 *             what a function says of its ids, edits and filters.
 * Environment That of floating point has to be the default one: rounding to nearest, subnormal
 *             numbers kept, no exception trapped. Which exception flags get raised is not defined.
 * Same bits   A row's result depends on that row, its mask, its edits, its temperature and the two
 *             dtypes alone, to the last bit: not on the other rows, its place, its alignment, its
 *             layout, or the row range. It is also the same for every instruction set.
 * Special rows come first: a NaN makes the whole row NaN (also its log-sum-exp); else +infinity
 *             makes the row NaN and its log-sum-exp +infinity; a row of only -infinity is NaN and
 *             its log-sum-exp -infinity. Masked entries stay what a masked entry gets even there.
 * Special temperatures: 0, and one so small that log2(e)/temperature overflows in the arithmetic:
 *             the mass is shared evenly by the entries equal to the maximum; fastsoftmax_logsumexp
 *             gives max/temperature. Infinity: uniform over the entries above -infinity; the
 *             log-sum-exp is the logarithm of their number.
 * Caches      Outputs of 4 MB and more are written around them where the hardware can.
 */

/* How many bytes of scratch memory softmax, log_softmax, logsumexp and the functions on blocks need
 * for this batch: at most 1 MB while a row is shorter than some millions of entries, then 24 bytes
 * for every 2048 entries of a row. It depends on the sizes of the column axes and the dtypes alone.
 * 0 for a batch that a call would refuse as BAD_ISA, BAD_DTYPE or BAD_SHAPE. */
FASTSOFTMAX_API size_t fastsoftmax_scratch_size(const fastsoftmax_batch *batch);

/* Probabilities: out[i] = exp(x[i]/T) / sum_j exp(x[j]/T); 0 for a masked entry.
 *
 * Writes every entry of a row. Error: at most 2 ULP + |x[i] - max|/T * 2^-24 relative (float),
 * 4 ULP and 2^-53 (double), over the whole range of results, subnormal ones included.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_softmax(const fastsoftmax_batch *batch,
                                                       int64_t row_begin, int64_t row_end,
                                                       void *scratch);

/* Log-probabilities: out[i] = x[i]/T - log(sum_j exp(x[j]/T)), without forming the probabilities;
 * -infinity for a masked entry. Writes every entry of a row.
 *
 * The maximum is kept out of the sum and its logarithm is taken as log1p, so a log-probability
 * near 0 keeps its relative precision. Error: at most 2 ULP + 1e-7 (float), 4 ULP + 1e-15 (double).
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_log_softmax(const fastsoftmax_batch *batch,
                                                           int64_t row_begin, int64_t row_end,
                                                           void *scratch);

/* One number a row: log(sum_j exp(x[j]/T)) over the entries that are not masked.
 *
 * `out` of the column axes counts for nothing. -infinity where all is masked, or there are no
 * columns. At a temperature of exactly 0 there is no limit: FASTSOFTMAX_BAD_TEMPERATURE. Error: as
 * log_softmax.
 */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_logsumexp(const fastsoftmax_batch *batch,
                                                         int64_t row_begin, int64_t row_end,
                                                         void *scratch);

/* One row by several threads. A row has fastsoftmax_block_count(batch) blocks, 0 if it is empty or a
 * call would refuse the batch as BAD_ISA, BAD_DTYPE or BAD_SHAPE:
 *
 *   1. fastsoftmax_reduce_blocks on ranges that make up all blocks, by any threads at once
 *   2. fastsoftmax_merge_blocks, once
 *   3. fastsoftmax_write_blocks on ranges that make up all blocks, by any threads at once
 *
 * `shared` is one scratch memory for all of these calls; `scratch` is each thread's own, of the same
 * size. `op` and the batch are the same throughout, and each step is over before the next begins.
 * Status, special rows, error and bits are those of the whole-row functions; a block range outside
 * the row is BAD_SHAPE. The one number of logsumexp is written with the range that begins at 0. */
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
 * `out` may be `x` where the operation writes rows; for logsumexp it has a number a row. A pointer
 * that is not aligned, and an `out` that overlaps `x` in any other way, is FASTSOFTMAX_BAD_POINTER.
 * The scratch memory is that of the batch; 1 MB is enough for rows of up to a million entries.
 * Threads share the rows out by calls on parts of the array. Error, special rows and bits are those
 * of the functions above. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_contiguous(fastsoftmax_op op, fastsoftmax_isa isa,
                                                          fastsoftmax_dtype dtype, int64_t rows,
                                                          int64_t cols, const void *x,
                                                          double temperature, void *out,
                                                          void *scratch);

/* Scoring: what is read off rows without writing them.
 *
 * These functions read rows as all do (`out` counts for nothing and may be NULL, but out_dtype has to
 * be valid: F64 makes the arithmetic double). They write to arrays in double or int64_t that are
 * contiguous, with a line for every row of the batch, of which those of the row range are written.
 * A row has no distribution if an unmasked entry is NaN or +infinity, or if nothing is above
 * -infinity. Log-probabilities have the error of double but for that of the terms, which is that of
 * softmax; the maximum is kept out of the sum and its logarithm taken as log1p. A temperature of 0 is
 * taken by all of them.
 *
 * `scratch` is of fastsoftmax_scoring_scratch_size(batch, k) bytes, k being that of topk and 0 for
 * the others: some 200 KB for a row of 128,000 entries, and 32 for each of k. It depends on k and
 * what fastsoftmax_scratch_size depends on; for kl_divergence it is that of either batch.
 */
FASTSOFTMAX_API size_t fastsoftmax_scoring_scratch_size(const fastsoftmax_batch *batch, int64_t k);

/* Log-probabilities and ranks of given entries.
 *
 * ids: (rows, m), each in [0, cols) or -1 for none; an id outside is undefined behaviour.
 * logprobs: (rows, m): -infinity for an entry that is masked or -infinity, NaN for an id of -1 and
 * for the others of a row without a distribution.
 * ranks: NULL, or (rows, m): 1 + the number of unmasked entries that are larger; 0 for NaN above.
 * mean: NULL, or (rows): the mean of the log-probabilities of the unmasked entries.
 * A row whose ids are all -1 is not read. m may be 0 (for the mean); below is BAD_SHAPE. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_token_logprobs(
    const fastsoftmax_batch *batch, const int64_t *ids, int64_t m, double *logprobs, int64_t *ranks,
    double *mean, int64_t row_begin, int64_t row_end, void *scratch);

/* The k largest entries of each row, downward, equal ones by ascending id: ids and logprobs are
 * (rows, k). Entries that are masked or -infinity never appear; places beyond the last one, and all
 * of a row without a distribution, hold -1 and NaN. k outside [1, cols] is BAD_SHAPE. A rising
 * threshold skips blocks and entries that cannot be among them. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_topk(const fastsoftmax_batch *batch, int64_t k,
                                                    int64_t *ids, double *logprobs,
                                                    int64_t row_begin, int64_t row_end,
                                                    void *scratch);

/* out: (rows, 4): log-sum-exp of x/T, mean and variance of x under softmax(x/T), entropy. NaN but
 * for the first where there is no distribution; -infinity, 0, 0, 0 where all is masked or there are
 * no columns. The first is NaN at a temperature of exactly 0. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_moments(const fastsoftmax_batch *batch, double *out,
                                                       int64_t row_begin, int64_t row_end,
                                                       void *scratch);

/* out: (rows): sum(p*(log(p) - log(q))) of two batches, in double throughout. +infinity where q has
 * no probability and p has; NaN where either has no distribution; 0 where all is masked or there are
 * no columns. Batches that differ in `isa` or in the number of columns are BAD_SHAPE; layouts, masks,
 * dtypes and temperatures may differ. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_kl_divergence(const fastsoftmax_batch *p,
                                                             const fastsoftmax_batch *q,
                                                             double *out, int64_t row_begin,
                                                             int64_t row_end, void *scratch);

/* What a row that is a part of a larger one comes to. maximum: (rows): the largest logit, NaN if
 * there is one, -infinity if there is none. rest: (rows): the sum of exp((x - maximum)/T) without one
 * of the largest; 0 where the maximum is not finite. Two parts merge: the lesser one counts
 * (1 + rest)*exp of the difference of the maxima over T. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_reduce(const fastsoftmax_batch *batch,
                                                      double *maximum, double *rest,
                                                      int64_t row_begin, int64_t row_end,
                                                      void *scratch);

/* Writes batch->out as softmax or, with `logarithm`, as log_softmax, for rows that are parts of larger
 * ones with these maxima and rests: (rows) each, read only. Error: that of softmax and log_softmax.
 * batch->out may be x as there. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_normalize(const fastsoftmax_batch *batch,
                                                         const double *maximum, const double *rest,
                                                         int logarithm, int64_t row_begin,
                                                         int64_t row_end, void *scratch);

/* Sampling: what is left of each row, one number a row. The filters apply in this order to the
 * entries from the largest down, equal ones by ascending id:
 *
 *   top_k   the first top_k survive; at least 1, cols and more switch it off
 *   top_p   of those the fewest first ones whose mass reaches top_p of theirs; at least one; 1 is off
 *   min_p   of those the ones with exp((x - max)/T) >= min_p; 0 is off
 *
 * top_p and min_p are in [0, 1]; numbers outside these ranges are undefined behaviour. At temperature
 * 0 the first of the maxima alone is left. Masses are summed in double. Rows of more than 2^31 - 1
 * entries are FASTSOFTMAX_BAD_SHAPE. Results are written as those of scoring. */
typedef struct fastsoftmax_filters {
    const int64_t *top_k;
    const double *top_p;
    const double *min_p;
} fastsoftmax_filters;

/* How many bytes of scratch memory the three functions below need: some 24 for each entry of a row,
 * of which those that no filter asks for are not touched. Reads top_k of every row of the batch, and
 * depends on the largest one beside what fastsoftmax_scratch_size depends on. */
FASTSOFTMAX_API size_t fastsoftmax_sample_scratch_size(const fastsoftmax_batch *batch,
                                                       const fastsoftmax_filters *filters);

/* Draws from what is left. uniforms: (rows, draws) in [0, 1); u draws the first survivor, by id, up to
 * which the weights exp((x - max)/T) sum to more than u times their sum. Without `replace` what has
 * been drawn is left out for the later draws of the row. ids, logprobs: (rows, draws); the
 * log-probability is that among all survivors. -1 and NaN in a row without a distribution and where
 * nothing is left. draws may be 0; below is BAD_SHAPE. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_sample(
    const fastsoftmax_batch *batch, const fastsoftmax_filters *filters, const double *uniforms,
    int64_t draws, int replace, int64_t *ids, double *logprobs, int64_t row_begin, int64_t row_end,
    void *scratch);

/* A uniform number in [0, 1) for a draw of fastsoftmax_sample, a multiple of 2^-53: a function of its
 * arguments that never changes, the one that the Python package draws with. A row that has a seed of
 * its own counts as row 0. */
FASTSOFTMAX_API double fastsoftmax_uniform(uint64_t seed, uint64_t row, uint64_t step,
                                           uint64_t draw);

/* counts: (rows): how many survive; 0 in a row without a distribution. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_count_survivors(const fastsoftmax_batch *batch,
                                                               const fastsoftmax_filters *filters,
                                                               int64_t *counts, int64_t row_begin,
                                                               int64_t row_end, void *scratch);

/* The survivors of row r, by ascending id, at the places from offsets[r] on, as many as
 * fastsoftmax_count_survivors counts, and their log-probabilities among them. */
FASTSOFTMAX_API fastsoftmax_status fastsoftmax_survivors(const fastsoftmax_batch *batch,
                                                         const fastsoftmax_filters *filters,
                                                         const int64_t *offsets, int64_t *ids,
                                                         double *logprobs, int64_t row_begin,
                                                         int64_t row_end, void *scratch);

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
