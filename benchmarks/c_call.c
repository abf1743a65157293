/* What a call of the C library costs above its kernel: a softmax of one row of float by the public
 * functions and by the kernel's own entry, which only the library can see, in turns. Prints medians
 * of the time of a call and how they compare with the kernel's.
 *
 *     cc -O2 -Icsrc/src benchmarks/c_call.c $(python -m fastsoftmax config --cflags --libs) -o c_call
 *     ./c_call [COLUMNS [ROUNDS]]
 */
#define _POSIX_C_SOURCE 200112L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

enum { KERNEL, BATCH, CONTIGUOUS, WAYS, CALLS = 16 /* between two looks at the clock */ };
static const char *const names[WAYS] = {"the kernel alone", "fastsoftmax_softmax",
                                        "fastsoftmax_contiguous"};

static const fsm_kernels *kernels_of(fastsoftmax_isa isa)
{
#if defined(FSM_X86)
    if (isa == FASTSOFTMAX_ISA_AVX512)
        return &fsm_table_avx512.type[0];
    if (isa == FASTSOFTMAX_ISA_AVX2)
        return &fsm_table_avx2.type[0];
#elif defined(FSM_ARM64)
    if (isa == FASTSOFTMAX_ISA_NEON)
        return &fsm_table_neon.type[0];
#endif
    (void)isa;
    return &fsm_table_scalar.type[0];
}

static void *allocate(size_t size)
{
    void *memory;
    if (posix_memalign(&memory, 64, size) != 0)
        exit(1);
    return memory;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const int64_t cols = argc > 1 ? atoll(argv[1]) : 32000;
    const int rounds = argc > 2 ? atoi(argv[2]) : 3001;
    if (cols < 1 || rounds < 1)
        return 2;
    float *x = (float *)allocate((size_t)cols * sizeof *x);
    float *out = (float *)allocate((size_t)cols * sizeof *out);
    for (int64_t i = 0; i < cols; ++i)
        x[i] = (float)(i * 7919 % 1000) / 100.0f;
    const double temperature = 0.7;
    const fastsoftmax_axis axes[2] = {{1, cols, cols, 0, 0}, {cols, 1, 1, 0, 0}};
    const fastsoftmax_isa isa = fastsoftmax_detect_isa();
    const fastsoftmax_batch batch = {isa, FASTSOFTMAX_F32, FASTSOFTMAX_F32, 1, 1, axes, x,
                                     NULL, &temperature, out, NULL, 0, NULL};
    const fsm_kernels *kernels = kernels_of(isa);
    void *scratch = allocate(fastsoftmax_scratch_size(&batch));
    double *times[WAYS];
    for (int w = 0; w < WAYS; ++w)
        times[w] = (double *)allocate((size_t)rounds * sizeof(double));

    int status = 0;
    for (int round = -rounds / 10; round < rounds; ++round) /* the first ones warm up */
        for (int way = 0; way < WAYS; ++way) {
            const double start = now();
            for (int i = 0; i < CALLS; ++i)
                if (way == KERNEL)
                    kernels->rows(&batch, FASTSOFTMAX_OP_SOFTMAX, 0, 1, scratch);
                else if (way == BATCH)
                    status |= (int)fastsoftmax_softmax(&batch, 0, 1, scratch);
                else
                    status |= (int)fastsoftmax_contiguous(FASTSOFTMAX_OP_SOFTMAX, isa,
                                                          FASTSOFTMAX_F32, 1, cols, x, temperature,
                                                          out, scratch);
            if (round >= 0)
                times[way][round] = (now() - start) / CALLS;
        }
    if (status)
        return 1;
    for (int w = 0; w < WAYS; ++w) {
        qsort(times[w], (size_t)rounds, sizeof(double), ascending);
        printf("%-24s %10.0f ns %8.4f\n", names[w], times[w][rounds / 2],
               times[w][rounds / 2] / times[KERNEL][rounds / 2]);
    }
    return 0;
}
