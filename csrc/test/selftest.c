/* Runs every instruction set of the library on the same rows and compares bits, and probabilities
 * with the C library's exp in long double. Exit code 0 means that all agreed. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastsoftmax.h"

enum { MAX_COLS = 5003, ISAS = 4 };
static const char *const names[ISAS] = {"scalar", "neon", "avx2", "avx512"};
static int failures;

static uint32_t state = 12345;
static double uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) * (1.0 / 16777216.0);
}

typedef fastsoftmax_status operation(const fastsoftmax_batch *, int64_t, int64_t);
static operation *const operations[3] = {fastsoftmax_softmax, fastsoftmax_log_softmax,
                                         fastsoftmax_logsumexp};

static void check_row(int cols, fastsoftmax_dtype dtype, double temperature)
{
    static float xf[MAX_COLS];
    static double x[MAX_COLS];
    static unsigned char out[ISAS][3][MAX_COLS * 8];
    const size_t size = dtype == FASTSOFTMAX_F32 ? 4 : 8;
    for (int i = 0; i < cols; ++i) {
        xf[i] = (float)(8.0 * (uniform() + uniform() + uniform() - 1.5));
        x[i] = xf[i];
    }
    for (int isa = 0; isa < ISAS; ++isa) {
        if (!fastsoftmax_has_isa((fastsoftmax_isa)isa))
            continue;
        for (int op = 0; op < 3; ++op) {
            fastsoftmax_batch batch = {(fastsoftmax_isa)isa, dtype, 1, cols, NULL, cols,
                                       &temperature, 0, NULL, cols};
            batch.x = dtype == FASTSOFTMAX_F32 ? (const void *)xf : (const void *)x;
            batch.out = out[isa][op];
            const size_t bytes = op == 2 ? size : (size_t)cols * size;
            if (operations[op](&batch, 0, 1) != FASTSOFTMAX_OK ||
                memcmp(out[isa][op], out[0][op], bytes) != 0) {
                printf("%s: operation %d differs from scalar at %d columns\n", names[isa], op, cols);
                ++failures;
            }
        }
    }
    long double max = x[0], sum = 0;
    for (int i = 1; i < cols; ++i)
        max = x[i] > max ? x[i] : max;
    for (int i = 0; i < cols; ++i)
        sum += expl((x[i] - max) / temperature);
    for (int i = 0; i < cols; ++i) {
        const long double want = expl((x[i] - max) / temperature) / sum;
        float f;
        double d;
        memcpy(&f, out[0][0] + 4 * (dtype == FASTSOFTMAX_F32 ? i : 0), 4);
        memcpy(&d, out[0][0] + 8 * (dtype == FASTSOFTMAX_F32 ? 0 : i), 8);
        const long double got = dtype == FASTSOFTMAX_F32 ? (long double)f : (long double)d;
        const long double eps = dtype == FASTSOFTMAX_F32 ? 0x1p-23L : 0x1p-52L;
        const long double least = dtype == FASTSOFTMAX_F32 ? 0x1p-148L : 0x1p-1073L;
        const long double bound = want * eps * (4 + (max - x[i]) / temperature) + least;
        if (!(fabsl(got - want) <= bound)) {
            printf("softmax is off at column %d of %d\n", i, cols);
            ++failures;
            break;
        }
    }
}

int main(void)
{
    const double temperatures[] = {0.01, 0.7, 1.0, 30.0};
    for (int t = 0; t < 4; ++t)
        for (int d = 0; d < 2; ++d) {
            for (int cols = 1; cols < 300; ++cols)
                check_row(cols, (fastsoftmax_dtype)d, temperatures[t]);
            for (int cols = 2046; cols < 2051; ++cols)
                check_row(cols, (fastsoftmax_dtype)d, temperatures[t]);
            check_row(MAX_COLS, (fastsoftmax_dtype)d, temperatures[t]);
        }
    const double bad[] = {-1.0, NAN};
    for (int t = 0; t < 2; ++t) {
        float x = 0, y = 7;
        const fastsoftmax_batch batch = {FASTSOFTMAX_ISA_SCALAR, FASTSOFTMAX_F32, 1, 1, &x, 1,
                                         &bad[t], 0, &y, 1};
        if (fastsoftmax_softmax(&batch, 0, 1) != FASTSOFTMAX_BAD_TEMPERATURE || y != 7.0f)
            ++failures;
    }
    printf("fastsoftmax %s, best instruction set %s: %d failures\n", fastsoftmax_version(),
           names[fastsoftmax_detect_isa()], failures);
    return failures != 0;
}
