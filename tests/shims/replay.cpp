// Runs recorded launches of one kernel source and compares every byte the launch leaves behind.
//   -DKERNEL_FILE="..."  the .cu source     -DKERNELS="X(a) X(b)"  its __global__ functions
// Usage: replay RECORDING [SEED...]. Exits 1 when a result differs. Built with a sanitizer it is the
// AddressSanitizer and ThreadSanitizer job: buffers are heap blocks of exactly the recorded size.
#include "simt.h"
#include KERNEL_FILE

#include "recording.h"

namespace {

struct Entry {
    const char* name;
    void (*run)(const unsigned*, size_t, void**, unsigned);
};
#define X(function)                                                                                      \
    void run_##function(const unsigned* geometry, size_t shared_bytes, void** params, unsigned seed) {   \
        simt::launch_kernel(&function, geometry, shared_bytes, params, seed);                            \
    }
KERNELS
#undef X
const Entry kEntries[] = {
#define X(function) {#function, &run_##function},
    KERNELS
#undef X
};

bool run(const recording::Launch& launch, const Entry& entry, unsigned seed) {
    std::vector<std::unique_ptr<unsigned char[]>> buffers;
    std::vector<uint64_t> values;
    std::vector<void*> params;
    for (const recording::Argument& argument : launch.arguments) {
        uint64_t value = argument.scalar;
        if (argument.is_buffer) {
            const auto image = argument.image(argument.before);
            buffers.emplace_back(new unsigned char[image.size()]);
            std::copy(image.begin(), image.end(), buffers.back().get());
            value = reinterpret_cast<uint64_t>(buffers.back().get());
        }
        values.push_back(value);
    }
    for (uint64_t& value : values) params.push_back(&value);
    entry.run(launch.geometry, launch.shared_bytes, params.data(), seed);
    bool same = true;
    size_t next = 0;
    for (size_t i = 0; i < launch.arguments.size(); ++i) {
        if (!launch.arguments[i].is_buffer) continue;
        const auto after = launch.arguments[i].image(launch.arguments[i].after);
        if (std::memcmp(buffers[next++].get(), after.data(), after.size()) != 0) {
            std::printf("WRONG RESULT: %s, argument %zu, seed %u\n", entry.name, i, seed);
            same = false;
        }
    }
    return same;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<unsigned> seeds;
    for (int i = 2; i < argc; ++i) seeds.push_back((unsigned)std::strtoul(argv[i], nullptr, 10));
    if (seeds.empty()) seeds.push_back(0);
    int launches = 0;
    bool same = true;
    for (const recording::Launch& launch : recording::Reader(argv[1]).launches())
        for (const Entry& entry : kEntries)
            if (launch.function == entry.name)
                for (unsigned seed : seeds) {
                    same = run(launch, entry, seed) && same;
                    ++launches;
                }
    std::printf("%d launches, %s\n", launches, same ? "all equal" : "some differ");
    return same && launches ? 0 : 1;
}
