/* Draws a token from each row of a .npy file of logits, in threads, and prints its id and its
 * log-probability:
 *
 *     sample_npy [-t TEMPERATURE] [-k TOP_K] [-p TOP_P] [-m MIN_P] [-s SEED] [-j THREADS] LOGITS.npy
 *
 * The file is mapped into memory, not read: float16, float32 or float64, one or two dimensions, rows
 * contiguous or (Fortran order) not. The library is handed a range of rows by each thread, and scratch
 * memory that the thread owns. The draws are those of fastsoftmax.sample(logits, seed=SEED).
 *
 * C99 and POSIX, and clean as C++. */
#ifndef _POSIX_C_SOURCE
#  define _POSIX_C_SOURCE 200112L
#endif
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fastsoftmax.h"

enum { MAX_THREADS = 256 };

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "sample_npy: %s: %s\n", what, why);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory;
    if (count > SIZE_MAX / size || posix_memalign(&memory, 64, count ? count * size : 64) != 0)
        fail("memory", "there is not enough");
    return memory;
}

/* ---- the file */

typedef struct matrix {
    const void *data;
    fastsoftmax_dtype dtype;
    int64_t rows, cols;
    int64_t row_stride, col_stride; /* in elements */
} matrix;

/* What follows 'key': in the header of a .npy file, which is a Python dictionary. */
static const char *value_of(const char *path, const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (!at)
        fail(path, "its header lacks a key");
    at += strlen(key);
    return at + strspn(at, ": ");
}

static matrix map_npy(const char *path)
{
    matrix m;
    struct stat info;
    const int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &info) != 0)
        fail(path, "cannot be opened");
    const size_t bytes = (size_t)info.st_size;
    const unsigned char *start =
        (const unsigned char *)mmap(NULL, bytes ? bytes : 1, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (start == (const unsigned char *)MAP_FAILED || bytes < 12 ||
        memcmp(start, "\x93NUMPY", 6) != 0)
        fail(path, "is not a .npy file");

    /* Version 1 has two bytes for the length of the header, later ones four. */
    const size_t before = start[6] == 1 ? 10 : 12;
    size_t length = start[8] + ((size_t)start[9] << 8);
    if (start[6] != 1)
        length += ((size_t)start[10] << 16) + ((size_t)start[11] << 24);
    if (length > bytes - before)
        fail(path, "ends within its header");
    char *header = (char *)allocate(length + 1, 1);
    memcpy(header, start + before, length);
    header[length] = 0;

    const unsigned one = 1;
    const char order = *(const unsigned char *)&one ? '<' : '>';
    const char *type = value_of(path, header, "'descr'");
    size_t size = 0;
    if (type[0] == '\'' && type[1] == order && type[2] == 'f' && type[3] && type[4] == '\'')
        size = (size_t)(type[3] - '0');
    if (size != 2 && size != 4 && size != 8)
        fail(path, "its dtype is none of float16, float32 and float64");
    m.dtype = size == 2 ? FASTSOFTMAX_F16 : size == 4 ? FASTSOFTMAX_F32 : FASTSOFTMAX_F64;

    /* (cols,) or (rows, cols) */
    const char *shape = value_of(path, header, "'shape'");
    long long sizes[2] = {1, 1};
    int dimensions = 0;
    for (const char *at = shape + (*shape == '('); *at && *at != ')'; at += strspn(at, " ,")) {
        char *end;
        const long long n = strtoll(at, &end, 10);
        if (end == at || n < 0 || dimensions == 2)
            fail(path, "its shape is neither (vocab,) nor (rows, vocab)");
        sizes[dimensions++] = n;
        at = end;
    }
    if (dimensions == 0)
        fail(path, "its shape is neither (vocab,) nor (rows, vocab)");
    m.rows = dimensions == 2 ? sizes[0] : 1;
    m.cols = sizes[dimensions - 1];
    const size_t entries = (bytes - before - length) / size;
    if (m.cols && (size_t)m.rows > entries / (size_t)m.cols)
        fail(path, "is shorter than its header says");
    const int columns = strncmp(value_of(path, header, "'fortran_order'"), "True", 4) == 0;
    m.row_stride = columns ? 1 : m.cols;
    m.col_stride = columns ? m.rows : 1;
    free(header);
    m.data = start + before + length;
    if ((uintptr_t)m.data % size)
        fail(path, "its data are not aligned"); /* NumPy writes none such */
    return m;
}

/* ---- the draws */

typedef struct job {
    const fastsoftmax_batch *batch;
    const fastsoftmax_filters *filters;
    const double *uniforms;
    int64_t *ids;
    double *logprobs;
    int64_t begin, end;
    fastsoftmax_status status;
} job;

static void *draw(void *argument)
{
    job *j = (job *)argument;
    void *scratch = allocate(fastsoftmax_sample_scratch_size(j->batch, j->filters), 1);
    j->status = fastsoftmax_sample(j->batch, j->filters, j->uniforms, 1, 1, j->ids, j->logprobs,
                                   j->begin, j->end, scratch);
    free(scratch);
    return NULL;
}

static double number(const char *option, const char *text, double least, double most)
{
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        fail(option, "is no number, or out of range");
    return value;
}

int main(int argc, char **argv)
{
    double temperature = 1.0, top_p = 1.0, min_p = 0.0;
    int64_t top_k = 0;
    uint64_t seed = 0;
    int threads = 2, option;
    while ((option = getopt(argc, argv, "t:k:p:m:s:j:")) != -1)
        switch (option) {
        case 't': temperature = number("-t", optarg, 0.0, INFINITY); break;
        case 'k': top_k = (int64_t)number("-k", optarg, 0, 1e15); break;
        case 'p': top_p = number("-p", optarg, 0.0, 1.0); break;
        case 'm': min_p = number("-m", optarg, 0.0, 1.0); break;
        case 's': seed = strtoull(optarg, NULL, 10); break;
        case 'j': threads = (int)number("-j", optarg, 1, MAX_THREADS); break;
        default: return 2;
        }
    if (optind != argc - 1)
        fail("usage", "sample_npy [-t T] [-k TOP_K] [-p TOP_P] [-m MIN_P] [-s SEED] [-j THREADS] "
                      "LOGITS.npy");
    const matrix m = map_npy(argv[optind]);

    /* From row to row, and along a row; one temperature for all rows has the stride 0. */
    fastsoftmax_axis axes[2];
    memset(axes, 0, sizeof axes);
    axes[0].size = m.rows;
    axes[0].x = m.row_stride;
    axes[1].size = m.cols;
    axes[1].x = m.col_stride;
    fastsoftmax_batch batch;
    memset(&batch, 0, sizeof batch); /* no mask, no edits */
    batch.isa = fastsoftmax_detect_isa();
    batch.x_dtype = m.dtype;
    batch.out_dtype = m.dtype;
    batch.row_axes = 1;
    batch.col_axes = 1;
    batch.axes = axes;
    batch.x = m.data;
    batch.temperature = &temperature;

    /* The filters and the uniforms are one a row. */
    const size_t rows = (size_t)m.rows;
    int64_t *top_ks = (int64_t *)allocate(rows, sizeof *top_ks);
    double *top_ps = (double *)allocate(rows, sizeof *top_ps);
    double *min_ps = (double *)allocate(rows, sizeof *min_ps);
    double *uniforms = (double *)allocate(rows, sizeof *uniforms);
    int64_t *ids = (int64_t *)allocate(rows, sizeof *ids);
    double *logprobs = (double *)allocate(rows, sizeof *logprobs);
    for (size_t r = 0; r < rows; ++r) {
        top_ks[r] = top_k ? top_k : INT64_MAX;
        top_ps[r] = top_p;
        min_ps[r] = min_p;
        uniforms[r] = fastsoftmax_uniform(seed, r, 0, 0);
    }
    fastsoftmax_filters filters;
    filters.top_k = top_ks;
    filters.top_p = top_ps;
    filters.min_p = min_ps;

    /* Each thread has its range of rows; the first one is this thread's. */
    static job jobs[MAX_THREADS];
    static pthread_t workers[MAX_THREADS];
    for (int t = 0; t < threads; ++t) {
        jobs[t].batch = &batch;
        jobs[t].filters = &filters;
        jobs[t].uniforms = uniforms;
        jobs[t].ids = ids;
        jobs[t].logprobs = logprobs;
        jobs[t].begin = m.rows * t / threads;
        jobs[t].end = m.rows * (t + 1) / threads;
        if (t > 0 && pthread_create(&workers[t], NULL, draw, &jobs[t]) != 0)
            fail("thread", "cannot be started");
    }
    draw(&jobs[0]);
    for (int t = 0; t < threads; ++t) {
        if (t > 0)
            pthread_join(workers[t], NULL);
        if (jobs[t].status != FASTSOFTMAX_OK) {
            fprintf(stderr, "sample_npy: status %d\n", (int)jobs[t].status);
            return 1;
        }
    }
    for (size_t r = 0; r < rows; ++r)
        printf("%lld\t%.17g\n", (long long)ids[r], logprobs[r]);
    free(logprobs);
    free(ids);
    free(uniforms);
    free(min_ps);
    free(top_ps);
    free(top_ks);
    return 0;
}
