/* The compiler's headers of the instruction sets. In the place of MSVC, older versions of clang leave
 * out of immintrin.h what no flag asks for. */
#include <immintrin.h>
#if defined(__clang__) && defined(_MSC_VER)
#  include <smmintrin.h>
#  include <avxintrin.h>
#  include <avx2intrin.h>
#  include <f16cintrin.h>
#  include <fmaintrin.h>
#  include <popcntintrin.h>
#  include <avx512fintrin.h>
#  include <avx512vlintrin.h>
#  include <avx512bwintrin.h>
#  include <avx512dqintrin.h>
#  include <avx512vlbwintrin.h>
#  include <avx512vldqintrin.h>
#endif
