// The kernels of one source as a host library, loaded with dlopen.
//   -DKERNEL_FILE="..."  the .cu source     -DKERNELS="X(a) X(b)"  its __global__ functions
#include "simt.h"
#include KERNEL_FILE

namespace simt {
// Bytes of each parameter, then 0: a driver must know them to copy arguments.
template <class Kernel>
struct Sizes;
template <class... Args>
struct Sizes<void (*)(Args...)> {
    unsigned bytes[sizeof...(Args) + 1] = {sizeof(Args)..., 0};
};
}  // namespace simt

// The driver's argument convention: params[i] points to the i-th argument.
#define X(function)                                                                                \
    extern "C" void host_##function(const unsigned* geometry, size_t shared_bytes, void** params, \
                                    unsigned seed) {                                              \
        simt::launch_kernel(&function, geometry, shared_bytes, params, seed);                     \
    }                                                                                              \
    extern "C" {                                                                                   \
    extern const simt::Sizes<decltype(&function)> host_sizes_##function;                           \
    const simt::Sizes<decltype(&function)> host_sizes_##function;                                  \
    }
KERNELS
