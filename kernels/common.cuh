#ifndef TAGS
#define TAGS 9
#endif
#ifndef VARIANT
#define VARIANT
#endif
#define PASTE(a, b) a##b
#define NAMED(name, variant) PASTE(name, variant)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
#define ALL_LANES 0xffffffffu
#define MOST_WARPS 4  // of a block
#define INFINITY_F __int_as_float(0x7f800000)
