#ifndef VARIANT
#define VARIANT
#endif
#define PASTE(a, b) a##b
#define NAMED(name, variant) PASTE(name, variant)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
