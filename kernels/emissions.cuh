#ifndef TAGS
#define TAGS 9
#endif
#ifndef EMIT_HALF
#define EMIT_HALF 0
#endif
#include "variant.cuh"
#ifndef HALF_TO_FLOAT
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#define HALF_TO_FLOAT(bits) half_bits_to_float(bits)
#endif
#if EMIT_HALF
typedef unsigned short emit_t;
#define TO_FLOAT(value) HALF_TO_FLOAT(value)
#else
typedef float emit_t;
#define TO_FLOAT(value) (value)
#endif
