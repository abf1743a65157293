/* Runs every instruction set of the library on the same rows, in rows, in columns, masked, in place
 * and by blocks, and compares bits; probabilities are compared with the C library's exp in long
 * double, and a hash of all bits with the one that every machine must come to. Exit code 0 means
 * that all agreed. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastsoftmax.h"

enum { ROWS = 21, MAX_COLS = 5003, ISAS = 4, OPS = 3, DTYPES = 4 };
static const char *const names[ISAS] = {"scalar", "neon", "avx2", "avx512"};
static const size_t sizes[DTYPES] = {4, 8, 2, 2};
static int failures;
static uint64_t hash = UINT64_C(0xcbf29ce484222325);

static uint32_t state = 12345;
static double uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) * (1.0 / 16777216.0);
}

typedef fastsoftmax_status operation(const fastsoftmax_batch *, int64_t, int64_t, void *);
static operation *const operations[OPS] = {fastsoftmax_softmax, fastsoftmax_log_softmax,
                                           fastsoftmax_logsumexp};

static void fail(const char *what, int isa, int op, int cols, int x_dtype, int out_dtype)
{
    if (failures++ < 20)
        printf("%s differs: %s, operation %d, %d columns, dtypes %d and %d\n", what, names[isa], op,
               cols, x_dtype, out_dtype);
}

/* A multiple of 1/8 of moderate size is a number of every type. */
static void put(void *p, int64_t i, int dtype, double value)
{
    const float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (dtype == FASTSOFTMAX_F32)
        ((float *)p)[i] = f;
    else if (dtype == FASTSOFTMAX_F64)
        ((double *)p)[i] = value;
    else if (dtype == FASTSOFTMAX_BF16)
        ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)p)[i] = (uint16_t)((bits >> 16 & 0x8000) |
                                        (value == 0 ? 0 : ((bits & 0x7fffffff) - (112u << 23)) >> 13));
}

static double logits[ROWS * MAX_COLS];
static union {
    double align;
    unsigned char bytes[ROWS * MAX_COLS * 8];
} x, x_columns, want, got;
static uint8_t where[ROWS * MAX_COLS];

static fastsoftmax_status call(int isa, int op, int x_dtype, int out_dtype, int cols, int columns,
                               int masked, int split, const double *temperature, const void *in,
                               void *out)
{
    const int64_t row = columns ? 1 : cols, col = columns ? ROWS : 1;
    const int reduces = op == FASTSOFTMAX_OP_LOGSUMEXP;
    const fastsoftmax_axis axes[2] = {{ROWS, row, reduces ? 1 : row, row, 1},
                                      {cols, col, reduces ? 0 : col, col, 0}};
    const fastsoftmax_batch batch = {(fastsoftmax_isa)isa,
                                     (fastsoftmax_dtype)x_dtype,
                                     (fastsoftmax_dtype)out_dtype,
                                     1,
                                     1,
                                     axes,
                                     in,
                                     masked ? where : NULL,
                                     temperature,
                                     out,
                                     NULL,
                                     0,
                                     NULL};
    const size_t size = fastsoftmax_scratch_size(&batch);
    void *scratch = malloc(2 * size + 64);
    void *aligned = (void *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    fastsoftmax_status status = FASTSOFTMAX_OK;
    if (!split) {
        status = operations[op](&batch, 0, ROWS, aligned);
    } else {
        char *own = (char *)aligned + (size + 63) / 64 * 64 - 64 * (size % 64 != 0);
        const int64_t blocks = fastsoftmax_block_count(&batch), half = blocks / 2;
        for (int64_t r = 0; r < ROWS && status == FASTSOFTMAX_OK; ++r) {
            const fastsoftmax_op which = (fastsoftmax_op)op;
            status = fastsoftmax_reduce_blocks(&batch, which, r, half, blocks, aligned, own);
            fastsoftmax_reduce_blocks(&batch, which, r, 0, half, aligned, own);
            fastsoftmax_merge_blocks(&batch, which, r, aligned, own);
            fastsoftmax_write_blocks(&batch, which, r, half, blocks, aligned, own);
            fastsoftmax_write_blocks(&batch, which, r, 0, half, aligned, own);
        }
    }
    free(scratch);
    return status;
}

static void compare(const char *what, int isa, int op, int x_dtype, int out_dtype, int cols,
                    int columns)
{
    const size_t size = sizes[out_dtype];
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < (op == 2 ? 1 : cols); ++c) {
            const size_t at = (size_t)(op == 2 ? r : r * cols + c);
            const size_t there = columns && op != 2 ? (size_t)(c * ROWS + r) : at;
            if (memcmp(got.bytes + there * size, want.bytes + at * size, size) != 0) {
                fail(what, isa, op, cols, x_dtype, out_dtype);
                return;
            }
        }
}

static void check_probabilities(int dtype, int cols, double temperature)
{
    const long double eps = dtype == FASTSOFTMAX_F32 ? 0x1p-23L : 0x1p-52L;
    const long double least = dtype == FASTSOFTMAX_F32 ? 0x1p-148L : 0x1p-1073L;
    for (int r = 0; r < ROWS; ++r) {
        const double *row = logits + r * cols;
        long double max = row[0], sum = 0;
        for (int i = 1; i < cols; ++i)
            max = row[i] > max ? row[i] : max;
        for (int i = 0; i < cols; ++i)
            sum += expl((row[i] - max) / temperature);
        for (int i = 0; i < cols; ++i) {
            const long double p = expl((row[i] - max) / temperature) / sum;
            float f;
            double d;
            memcpy(&f, want.bytes + 4 * (size_t)(r * cols + i), 4);
            memcpy(&d, want.bytes + 8 * (size_t)(dtype == FASTSOFTMAX_F64 ? r * cols + i : 0), 8);
            const long double q = dtype == FASTSOFTMAX_F32 ? (long double)f : (long double)d;
            if (!(fabsl(q - p) <= p * eps * (4 + (max - row[i]) / temperature) + least)) {
                fail("long double", 0, 0, cols, dtype, dtype);
                return;
            }
        }
    }
}

/* The call without a batch: the same bits, and it refuses what it cannot do. */
static void check_contiguous(int dtype, int cols, const double *temperature)
{
    static union {
        double align;
        unsigned char bytes[(1 << 20) + 64];
    } memory;
    void *scratch = (void *)(((uintptr_t)memory.bytes + 63) & ~(uintptr_t)63);
    const fastsoftmax_dtype type = (fastsoftmax_dtype)dtype;
    for (int op = 0; op < OPS; ++op) {
        const fastsoftmax_op which = (fastsoftmax_op)op;
        call(0, op, dtype, dtype, cols, 0, 0, 0, temperature, x.bytes, want.bytes);
        for (int i = 0; i < ISAS; ++i) {
            const fastsoftmax_isa isa = (fastsoftmax_isa)i;
            if (!fastsoftmax_has_isa(isa))
                continue;
            memset(got.bytes, 0x55, (size_t)(ROWS * cols) * sizes[dtype]);
            if (fastsoftmax_contiguous(which, isa, type, ROWS, cols, x.bytes, *temperature,
                                       got.bytes, scratch) != FASTSOFTMAX_OK)
                fail("the status without a batch", i, op, cols, dtype, dtype);
            compare("without a batch", i, op, dtype, dtype, cols, 0);
            if (op != FASTSOFTMAX_OP_LOGSUMEXP) {
                memcpy(got.bytes, x.bytes, (size_t)(ROWS * cols) * sizes[dtype]);
                fastsoftmax_contiguous(which, isa, type, ROWS, cols, got.bytes, *temperature,
                                       got.bytes, scratch);
                compare("in place without a batch", i, op, dtype, dtype, cols, 0);
            }
        }
        unsigned char *const p = got.bytes;
        const size_t end = (size_t)(ROWS * cols - 1) * sizes[dtype]; /* the last entry */
        memset(p, 7, end + sizes[dtype]);
        if (fastsoftmax_contiguous(which, FASTSOFTMAX_ISA_SCALAR, type, ROWS, cols, p + 1, 1.0,
                                   want.bytes, scratch) != FASTSOFTMAX_BAD_POINTER ||
            fastsoftmax_contiguous(which, FASTSOFTMAX_ISA_SCALAR, type, ROWS, cols, want.bytes, 1.0,
                                   p + 1, scratch) != FASTSOFTMAX_BAD_POINTER ||
            fastsoftmax_contiguous(which, FASTSOFTMAX_ISA_SCALAR, type, ROWS, cols, p, 1.0, p + end,
                                   scratch) != FASTSOFTMAX_BAD_POINTER ||
            p[end] != 7)
            fail("a bad pointer", 0, op, cols, dtype, dtype);
    }
}

static void check(int cols, int x_dtype, int out_dtype, double t)
{
    double temperature[ROWS];
    for (int r = 0; r < ROWS; ++r)
        temperature[r] = r % 7 == 6 ? (r == 6 ? INFINITY : 3.0 * t) : t;
    for (int i = 0; i < ROWS * cols; ++i)
        where[i] = uniform() < 0.8;
    memset(where + 2 * cols, 0, (size_t)cols);
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < cols; ++c) {
            const int at = r * cols + c;
            logits[at] = floor(64.0 * (uniform() + uniform() + uniform() - 1.5)) / 8.0;
            put(x.bytes, at, x_dtype, logits[at]);
            put(x_columns.bytes, c * ROWS + r, x_dtype, logits[at]);
        }
    for (int op = 0; op < OPS; ++op)
        for (int masked = 0; masked < 2; ++masked) {
            const size_t bytes = (size_t)(op == 2 ? ROWS : ROWS * cols) * sizes[out_dtype];
            call(0, op, x_dtype, out_dtype, cols, 0, masked, 0, temperature, x.bytes, want.bytes);
            for (size_t i = 0; i < bytes; ++i)
                hash = (hash ^ want.bytes[i]) * UINT64_C(0x100000001b3);
            for (int isa = 0; isa < ISAS; ++isa) {
                if (!fastsoftmax_has_isa((fastsoftmax_isa)isa))
                    continue;
                memset(got.bytes, 0x55, bytes);
                if (call(isa, op, x_dtype, out_dtype, cols, 0, masked, 0, temperature, x.bytes,
                         got.bytes) != FASTSOFTMAX_OK)
                    fail("the status", isa, op, cols, x_dtype, out_dtype);
                compare(masked ? "masked" : "in rows", isa, op, x_dtype, out_dtype, cols, 0);
                call(isa, op, x_dtype, out_dtype, cols, 0, masked, 1, temperature, x.bytes,
                     got.bytes);
                compare("by blocks", isa, op, x_dtype, out_dtype, cols, 0);
                if (!masked) { /* where has no layout in columns here */
                    call(isa, op, x_dtype, out_dtype, cols, 1, 0, 0, temperature, x_columns.bytes,
                         got.bytes);
                    compare("in columns", isa, op, x_dtype, out_dtype, cols, 1);
                    if (x_dtype == out_dtype && op != 2) {
                        memcpy(got.bytes, x.bytes, bytes);
                        call(isa, op, x_dtype, out_dtype, cols, 0, 0, 0, temperature, got.bytes,
                             got.bytes);
                        compare("in place", isa, op, x_dtype, out_dtype, cols, 0);
                    }
                }
            }
        }
    for (int r = 0; r < ROWS; ++r)
        temperature[r] = t;
    if (x_dtype == out_dtype)
        check_contiguous(x_dtype, cols, temperature);
    if (x_dtype == out_dtype && x_dtype <= FASTSOFTMAX_F64) {
        call(0, 0, x_dtype, out_dtype, cols, 0, 0, 0, temperature, x.bytes, want.bytes);
        check_probabilities(x_dtype, cols, t);
    }
}

/* Every call that has to be refused, and what for. Nothing is written. */
static void check_refusals(void)
{
    static const int64_t large = INT64_C(1) << 40;
    static const double one = 1.0;
    const fastsoftmax_axis axes[2] = {{2, 3, 3, 3, 0}, {3, 1, 1, 1, 0}};
    const fastsoftmax_batch good = {FASTSOFTMAX_ISA_SCALAR, FASTSOFTMAX_F32, FASTSOFTMAX_F32, 1, 1,
                                    axes, x.bytes, NULL, &one, got.bytes, NULL, 0, NULL};
    const struct {
        int64_t rows, cols, begin, end;
        int isa, x_dtype, out_dtype, pointers;
        fastsoftmax_status status;
    } cases[] = {
        {2, 3, 0, 2, 9, 0, 0, 7, FASTSOFTMAX_BAD_ISA},
        {2, 3, 0, 2, -1, 0, 0, 7, FASTSOFTMAX_BAD_ISA},
        {2, 3, 0, 2, 0, 4, 0, 7, FASTSOFTMAX_BAD_DTYPE},
        {2, 3, 0, 2, 0, 0, -1, 7, FASTSOFTMAX_BAD_DTYPE},
        {-2, 3, 0, 2, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, -3, 0, 2, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, 3, -1, 2, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, 3, 2, 1, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, 3, 0, 3, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, INT64_MAX, 0, 2, 0, 0, 0, 7, FASTSOFTMAX_BAD_SHAPE},
        {2, 3, 0, 2, 0, 0, 0, 6, FASTSOFTMAX_BAD_POINTER},
        {2, 3, 0, 2, 0, 0, 0, 5, FASTSOFTMAX_BAD_POINTER},
        {2, 3, 0, 2, 0, 0, 0, 3, FASTSOFTMAX_BAD_POINTER},
    };
    memset(got.bytes, 7, 64);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        fastsoftmax_axis sizes[2] = {axes[0], axes[1]};
        sizes[0].size = cases[i].rows;
        sizes[1].size = cases[i].cols;
        fastsoftmax_batch batch = good;
        batch.axes = sizes;
        batch.isa = (fastsoftmax_isa)cases[i].isa;
        batch.x_dtype = (fastsoftmax_dtype)cases[i].x_dtype;
        batch.out_dtype = (fastsoftmax_dtype)cases[i].out_dtype;
        batch.x = cases[i].pointers & 1 ? good.x : NULL;
        batch.temperature = cases[i].pointers & 2 ? good.temperature : NULL;
        batch.out = cases[i].pointers & 4 ? good.out : NULL;
        for (int op = 0; op < OPS; ++op)
            if (operations[op](&batch, cases[i].begin, cases[i].end, NULL) != cases[i].status)
                fail("what is refused", 0, op, (int)i, 0, 0);
        if (cases[i].pointers == 7 && cases[i].begin >= 0 && cases[i].end == 2 &&
            fastsoftmax_scratch_size(&batch) != 0)
            fail("the scratch memory of what is refused", 0, 0, (int)i, 0, 0);
    }
    /* Lengths whose product overflows, on several axes and in one call. */
    const fastsoftmax_axis many[3] = {{large, 0, 0, 0, 0}, {large, 0, 0, 0, 0}, {2, 1, 1, 1, 0}};
    fastsoftmax_batch batch = good;
    batch.axes = many;
    for (batch.row_axes = 0; batch.row_axes <= 2; batch.row_axes += 2) {
        batch.col_axes = 3 - batch.row_axes;
        if (fastsoftmax_softmax(&batch, 0, 1, NULL) != FASTSOFTMAX_BAD_SHAPE)
            fail("a product that overflows", 0, batch.row_axes, 0, 0, 0);
    }
    if (fastsoftmax_block_count(&batch) != 0)
        fail("the blocks of what is refused", 0, 0, 0, 0, 0);
    if (fastsoftmax_reduce_blocks(&good, FASTSOFTMAX_OP_SOFTMAX, INT64_MAX, 0, 1, NULL, NULL) !=
        FASTSOFTMAX_BAD_SHAPE)
        fail("a row outside the batch", 0, 0, 0, 0, 0);
    if (fastsoftmax_contiguous(FASTSOFTMAX_OP_SOFTMAX, FASTSOFTMAX_ISA_SCALAR, FASTSOFTMAX_F32, large,
                               large, x.bytes, 1.0, got.bytes, NULL) != FASTSOFTMAX_BAD_SHAPE)
        fail("a product that overflows without a batch", 0, 0, 0, 0, 0);
    for (int i = 0; i < 64; ++i)
        if (got.bytes[i] != 7)
            fail("the output of what is refused", 0, 0, i, 0, 0);
}

/* The mean log-probability without that of any token: of the logits 0, 1, 2 it is -log(1 + e^-1 + e^-2)
 * - 1. */
static void check_mean(void)
{
    static const float logits[3] = {0.0f, 1.0f, 2.0f};
    static const double one = 1.0;
    const fastsoftmax_axis axes[2] = {{1, 3, 3, 3, 0}, {3, 1, 1, 1, 0}};
    const fastsoftmax_batch batch = {FASTSOFTMAX_ISA_SCALAR, FASTSOFTMAX_F32, FASTSOFTMAX_F32, 1, 1,
                                     axes, logits, NULL, &one, NULL, NULL, 0, NULL};
    double mean = 0.0;
    const size_t size = fastsoftmax_scoring_scratch_size(&batch, 0);
    char *memory = (char *)malloc(size + 64);
    void *scratch = (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    if (fastsoftmax_token_logprobs(&batch, NULL, 0, NULL, NULL, &mean, 0, 1, scratch) !=
            FASTSOFTMAX_OK ||
        fabs(mean + 1.0 + log(1.0 + exp(-1.0) + exp(-2.0))) > 1e-7)
        fail("a mean without tokens", 0, 0, 3, 0, 0);
    free(memory);
}

/* The hash that every instruction set of every architecture comes to. */
#define HASH UINT64_C(0xd90e48420a3379bb)

int main(void)
{
    static const double temperatures[] = {0.01, 0.7, 30.0};
    static const int lengths[] = {1,  2,  3,  4,  5,  7,   8,   10,  15,  16,   17,   31,   32,  33,
                                  63, 64, 65, 99, 127, 128, 129, 255, 256, 300, 2047, 2048, 2049};
    for (int t = 0; t < 3; ++t)
        for (int a = 0; a < DTYPES; ++a)
            for (int b = 0; b < DTYPES; ++b)
                for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i)
                    if (a == b || lengths[i] < 300)
                        check(lengths[i], a, b, temperatures[t]);
    check(MAX_COLS, FASTSOFTMAX_F32, FASTSOFTMAX_F32, 0.7);
    check(MAX_COLS, FASTSOFTMAX_F64, FASTSOFTMAX_F64, 0.7);
    check(MAX_COLS, FASTSOFTMAX_F16, FASTSOFTMAX_BF16, 0.7);
    double bad[ROWS] = {-1.0, NAN};
    memset(got.bytes, 7, 16);
    for (int t = 0; t < 2; ++t, bad[0] = NAN)
        if (call(0, 0, 0, 0, 4, 0, 0, 0, bad, x.bytes, got.bytes) != FASTSOFTMAX_BAD_TEMPERATURE ||
            got.bytes[0] != 7)
            fail("a bad temperature", 0, 0, 4, 0, 0);
    check_refusals();
    check_mean();
    if (hash != HASH) {
        printf("the hash of all results is %016llx; it must be %016llx\n", (unsigned long long)hash,
               (unsigned long long)HASH);
        ++failures;
    }
    printf("fastsoftmax %s, best instruction set %s: %d failures\n", fastsoftmax_version(),
           names[fastsoftmax_detect_isa()], failures);
    return failures != 0;
}
