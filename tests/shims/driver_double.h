// What the driver double keeps: memory, streams and their delayed work, modules. See driver_double.cpp.
#pragma once
#include <algorithm>
#include <dirent.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

enum Status {
    kOk = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kInvalidDevice = 101,
    kInvalidImage = 200,
    kInvalidContext = 201,
    kUnsupportedPtx = 222,
    kInvalidHandle = 400,
    kNotFound = 500,
    kNotReady = 600,
    kIllegalAddress = 700,
    kCaptureUnsupported = 900,
};
using Pointer = unsigned long long;
using Work = std::function<void()>;

constexpr size_t kDeviceBytes = size_t(8) << 30;

struct Stream {
    std::deque<Work> queue;
    std::vector<Work>* capture = nullptr;
};
struct Event {
    Stream* stream = nullptr;
    bool pending = false;
};
struct Graph {
    std::vector<Work> nodes;
};
struct Module {
    std::string image;
};
using HostLaunch = void (*)(const unsigned*, size_t, void**, unsigned);
struct Function {
    HostLaunch run;
    const unsigned* sizes;  // bytes of each parameter, then 0
};

std::recursive_mutex g_mutex;
std::map<Pointer, size_t> g_device, g_pinned;
std::set<void*> g_handles;
int g_context;
thread_local std::vector<void*> t_contexts;

using Guard = std::lock_guard<std::recursive_mutex>;

bool inside(const std::map<Pointer, size_t>& blocks, Pointer address, size_t bytes) {
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return false;
    --next;
    return address + bytes <= next->first + next->second;
}

int check(void* handle) {
    if (t_contexts.empty()) return kInvalidContext;
    return handle && !g_handles.count(handle) ? kInvalidHandle : kOk;
}

Stream g_default_stream;
Stream* stream_of(void* handle) { return handle ? static_cast<Stream*>(handle) : &g_default_stream; }

void drain(Stream* stream) {
    while (!stream->queue.empty()) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
    }
}

int enqueue(void* handle, Work work) {
    Stream* stream = stream_of(handle);
    if (stream->capture)
        stream->capture->push_back(std::move(work));
    else
        stream->queue.push_back(std::move(work));
    return kOk;
}

bool anything_captures() {
    for (void* handle : g_handles)
        if (static_cast<Stream*>(handle)->capture) return true;
    return false;
}

std::set<void*> g_events, g_other;  // events, modules, graphs: handles that are not streams

int check_other(void* handle) {
    if (t_contexts.empty()) return kInvalidContext;
    return g_other.count(handle) || g_events.count(handle) ? kOk : kInvalidHandle;
}

int allocate(std::map<Pointer, size_t>& blocks, Pointer* out, size_t bytes, size_t alignment) {
    if (t_contexts.empty()) return kInvalidContext;
    if (!bytes) return kInvalidValue;
    if (anything_captures()) return kCaptureUnsupported;
    void* memory = nullptr;
    if (bytes > kDeviceBytes || posix_memalign(&memory, alignment, bytes)) return kOutOfMemory;
    std::memset(memory, 0xA5, bytes);
    *out = reinterpret_cast<Pointer>(memory);
    blocks[*out] = bytes;
    return kOk;
}

int release(std::map<Pointer, size_t>& blocks, Pointer pointer) {
    if (t_contexts.empty()) return kInvalidContext;
    if (!blocks.erase(pointer)) return kInvalidValue;
    std::free(reinterpret_cast<void*>(pointer));
    return kOk;
}

void* symbol_in_folder(const std::string& name) {
    const char* folder = std::getenv("AMLR_DOUBLE_KERNELS");
    DIR* listing = folder ? opendir(folder) : nullptr;
    void* found = nullptr;
    while (listing && !found) {
        dirent* entry = readdir(listing);
        if (!entry) break;
        const std::string file = entry->d_name;
        if (file.size() < 3 || file.compare(file.size() - 3, 3, ".so")) continue;
        void* library = dlopen((std::string(folder) + "/" + file).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library) found = dlsym(library, name.c_str());
    }
    if (listing) closedir(listing);
    return found;
}

int number_from(const char* variable, int otherwise) {
    const char* text = std::getenv(variable);
    return text ? std::atoi(text) : otherwise;
}

size_t image_bytes(const char* image) {
    // An ELF's section headers are its last part.
    uint64_t offset;
    uint16_t entry, count;
    std::memcpy(&offset, image + 40, 8);
    std::memcpy(&entry, image + 58, 2);
    std::memcpy(&count, image + 60, 2);
    uint64_t end = offset + uint64_t(entry) * count;
    uint64_t segments;
    uint16_t segment_entry, segment_count;
    std::memcpy(&segments, image + 32, 8);
    std::memcpy(&segment_entry, image + 54, 2);
    std::memcpy(&segment_count, image + 56, 2);
    return std::max<uint64_t>(end, segments + uint64_t(segment_entry) * segment_count);
}

}  // namespace
