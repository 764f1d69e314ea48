// Runs recorded launches of one kernel source and compares every byte the launch leaves behind.
//   -DKERNEL_FILE="..."  the .cu source     -DKERNELS="X(a) X(b)"  its __global__ functions
// Usage: replay RECORDING [SEED...]. Exits 1 when a result differs. Built with a sanitizer it is the
// AddressSanitizer and ThreadSanitizer job: buffers are heap blocks of exactly the recorded size.
#include "simt.h"
#include KERNEL_FILE

#include <string>

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

struct Argument {
    bool is_buffer;
    uint64_t scalar;
    std::vector<unsigned char> before, after;
};

struct Launch {
    std::string function;
    unsigned geometry[6];
    size_t shared_bytes;
    std::vector<Argument> arguments;
};

template <class T>
T read(FILE* file) {
    T value;
    if (std::fread(&value, sizeof value, 1, file) != 1) simt::fail("the recording is cut short");
    return value;
}

std::vector<unsigned char> read_bytes(FILE* file, size_t count) {
    std::vector<unsigned char> bytes(count);
    if (count && std::fread(bytes.data(), count, 1, file) != 1) simt::fail("the recording is cut short");
    return bytes;
}

Launch read_launch(FILE* file) {
    Launch launch;
    const auto name = read_bytes(file, read<uint32_t>(file));
    launch.function.assign(name.begin(), name.end());
    for (unsigned& value : launch.geometry) value = read<uint32_t>(file);
    launch.shared_bytes = read<uint64_t>(file);
    launch.arguments.resize(read<uint32_t>(file));
    for (Argument& argument : launch.arguments) {
        argument.is_buffer = read<uint32_t>(file);
        if (argument.is_buffer) {
            const size_t size = read<uint64_t>(file);
            argument.before = read_bytes(file, size);
            argument.after = read_bytes(file, size);
        } else {
            argument.scalar = read<uint64_t>(file);
        }
    }
    return launch;
}

bool run(const Launch& launch, const Entry& entry, unsigned seed) {
    std::vector<std::unique_ptr<unsigned char[]>> buffers;
    std::vector<uint64_t> values;
    std::vector<void*> params;
    for (const Argument& argument : launch.arguments) {
        uint64_t value = argument.scalar;
        if (argument.is_buffer) {
            buffers.emplace_back(new unsigned char[argument.before.size()]);
            std::copy(argument.before.begin(), argument.before.end(), buffers.back().get());
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
        const auto& after = launch.arguments[i].after;
        if (std::memcmp(buffers[next++].get(), after.data(), after.size()) != 0) {
            std::printf("WRONG RESULT: %s, argument %zu, seed %u\n", entry.name, i, seed);
            same = false;
        }
    }
    return same;
}

}  // namespace

int main(int argc, char** argv) {
    FILE* file = std::fopen(argv[1], "rb");
    if (!file) simt::fail("cannot open the recording");
    std::vector<unsigned> seeds;
    for (int i = 2; i < argc; ++i) seeds.push_back((unsigned)std::strtoul(argv[i], nullptr, 10));
    if (seeds.empty()) seeds.push_back(0);
    int launches = 0;
    bool same = true;
    const uint32_t count = read<uint32_t>(file);
    for (uint32_t i = 0; i < count; ++i) {
        const Launch launch = read_launch(file);
        for (const Entry& entry : kEntries)
            if (launch.function == entry.name)
                for (unsigned seed : seeds) {
                    same = run(launch, entry, seed) && same;
                    ++launches;
                }
    }
    std::fclose(file);
    std::printf("%d launches, %s\n", launches, same ? "all equal" : "some differ");
    return same && launches ? 0 : 1;
}
