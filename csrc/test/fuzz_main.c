/* Runs fuzz.c without libFuzzer: on inputs of a generator, or on those in files.
 *
 *     fuzz EXECUTIONS [SEED [SECONDS]]    random inputs, until either is reached; 0 for no limit
 *     fuzz FILE...
 *
 * What an execution fails on is printed in hexadecimal; `xxd -r -p` makes a file of it. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t input[1 << 16];
static size_t length;

static void report(int number)
{
    fprintf(stderr, "signal %d; the input was ", number);
    for (size_t i = 0; i < length; ++i)
        fprintf(stderr, "%02x", input[i]);
    fprintf(stderr, "\n");
    signal(number, SIG_DFL);
    raise(number);
}

static uint64_t state;
static uint64_t next_word(void)
{
    state += UINT64_C(0x9e3779b97f4a7c15); /* SplitMix64 */
    uint64_t z = state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

int main(int count, char **arguments)
{
    char *end = NULL;
    const unsigned long long executions = count > 1 ? strtoull(arguments[1], &end, 10) : 0;
    signal(SIGABRT, report);
    signal(SIGSEGV, report);
    signal(SIGFPE, report);
    if (count < 2 || *end) {
        for (int i = 1; i < count; ++i) {
            FILE *file = fopen(arguments[i], "rb");
            if (!file) {
                perror(arguments[i]);
                return 2;
            }
            length = fread(input, 1, sizeof input, file);
            fclose(file);
            LLVMFuzzerTestOneInput(input, length);
        }
        return count < 2 ? 2 : 0;
    }
    const uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 10) : (uint64_t)time(NULL);
    const double seconds = count > 3 ? strtod(arguments[3], NULL) : 0.0;
    const time_t start = time(NULL);
    unsigned long long done = 0;
    state = seed;
    for (; (!executions || done < executions) &&
           (seconds <= 0.0 || done % 64 || difftime(time(NULL), start) < seconds);
         ++done) {
        length = 8 + next_word() % 120;
        for (size_t i = 0; i < length; i += 8) {
            const uint64_t word = next_word();
            for (size_t j = 0; j < 8; ++j)
                input[i + j] = (uint8_t)(word >> 8 * j);
        }
        LLVMFuzzerTestOneInput(input, length);
    }
    printf("%llu executions, seed %llu: no failure\n", done, (unsigned long long)seed);
    return 0;
}
