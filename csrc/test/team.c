/* The threads of csrc/python/team.h: every row of every batch once, by a leader and helpers that come
 * and go, and never by more at a time than may. Meant for -fsanitize=thread.
 *
 *     team [BATCHES] */
#define _POSIX_C_SOURCE 200112L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastsoftmax.h"

#include "../python/team.h"

enum { HELPERS = 3, ROWS = 500 };

static fsm_team team;
static int rows[ROWS];
static int at_work, most, done, helped;

static fastsoftmax_status count_rows(const fastsoftmax_batch *batch, int64_t begin, int64_t end,
                                     void *scratch)
{
    const int n = FSM_ADD(&at_work, 1) + 1;
    if (n > FSM_LOAD(&most))
        FSM_STORE(&most, n);
    if (scratch)
        FSM_ADD(&helped, 1);
    for (int64_t i = begin; i < end; ++i) {
        ++rows[i];
        fsm_pause();
    }
    FSM_ADD(&at_work, -1);
    return batch->row_axes == 1 && begin == 0 ? FASTSOFTMAX_BAD_SHAPE : FASTSOFTMAX_OK;
}

static void *aligned(void *memory)
{
    return (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
}

static void *help(void *unused)
{
    void *scratch = NULL;
    size_t size = 0;
    while (!FSM_LOAD(&done)) {
        const size_t needed = fsm_team_help(&team, aligned(scratch), size, 20000);
        if (!needed)
            continue;
        free(scratch);
        scratch = malloc(needed + 64);
        if (!scratch)
            abort();
        size = needed;
    }
    free(scratch);
    return unused;
}

/* The same bits as without a team, in each of several batches. */
static int contiguous(void)
{
    enum { COLS = 37 };
    static float x[ROWS * COLS], want[ROWS * COLS], got[ROWS * COLS];
    static char memory[(1 << 20) + 64];
    void *const scratch = aligned(memory);
    const fastsoftmax_isa isa = fastsoftmax_detect_isa();
    for (int i = 0; i < ROWS * COLS; ++i)
        x[i] = (float)(i * 7919 % 1000) / 100;
    int failures = fastsoftmax_contiguous(FASTSOFTMAX_OP_SOFTMAX, isa, FASTSOFTMAX_F32, ROWS, COLS, x,
                                          0.7, want, scratch) != FASTSOFTMAX_OK;
    for (int i = 0; i < 20; ++i) {
        memset(got, 0, sizeof got);
        failures += fsm_team_contiguous(&team, 1 + i * 9, HELPERS, fastsoftmax_softmax, 1, isa,
                                        FASTSOFTMAX_F32, ROWS, COLS, x, 0.7, got, scratch,
                                        1 << 20) != FASTSOFTMAX_OK;
        failures += memcmp(got, want, sizeof want) != 0;
    }
    return failures + (fsm_team_contiguous(&team, 1, 0, fastsoftmax_softmax, 1, isa, FASTSOFTMAX_F32,
                                           ROWS, COLS, x, 0.7, got, scratch,
                                           10) != FASTSOFTMAX_BAD_SHAPE);
}

int main(int argc, char **argv)
{
    const int batches = argc > 1 ? atoi(argv[1]) : 20000;
    int failures = !fsm_team_supported() || fsm_team_alone(&team) != 0;
    pthread_t threads[HELPERS];
    for (int i = 0; i < HELPERS; ++i)
        if (pthread_create(&threads[i], NULL, help, NULL))
            abort();
    while (fsm_team_waiting(&team) < HELPERS)
        sched_yield();
    for (int i = 0; i < batches; ++i) {
        fastsoftmax_batch batch = {0}; /* lives no longer than its turn */
        batch.row_axes = i % 7 == 0;
        const int64_t begin = i % 3, end = ROWS - i % 5;
        const int limit = i % (HELPERS + 1);
        FSM_STORE(&most, 0);
        const fastsoftmax_status status = fsm_team_lead(&team, count_rows, &batch, begin, end,
                                                        1 + i % 40, limit, 64, NULL);
        failures += status != (begin == 0 && i % 7 == 0 ? FASTSOFTMAX_BAD_SHAPE : FASTSOFTMAX_OK);
        failures += most > limit + 1;
        for (int64_t r = 0; r < ROWS; ++r) {
            failures += rows[r] != (r >= begin && r < end);
            rows[r] = 0;
        }
        if (i % 50 == 0)
            fsm_team_dismiss(&team);
    }
    failures += contiguous();
    FSM_STORE(&done, 1);
    for (int i = 0; i < HELPERS; ++i)
        if (pthread_join(threads[i], NULL))
            abort();
    failures += fsm_team_waiting(&team) != 0 || helped == 0;
    printf("%d batches, %d pieces taken by helpers, %d failures\n", batches, helped, failures);
    return failures != 0;
}
