// The kernels of one source as a host library, loaded with dlopen.
//   -DKERNEL_FILE="..."  the .cu source     -DKERNELS="X(a) X(b)"  its __global__ functions
#include "simt.h"
#include KERNEL_FILE

// The driver's argument convention: params[i] points to the i-th argument.
#define X(function)                                                                                \
    extern "C" void host_##function(const unsigned* geometry, size_t shared_bytes, void** params, \
                                    unsigned seed) {                                              \
        simt::launch_kernel(&function, geometry, shared_bytes, params, seed);                     \
    }
KERNELS
