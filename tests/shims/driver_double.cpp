// A CUDA driver without a GPU: a test double of the public driver API, never shipped.
//
// Memory is host memory, launches run the real kernels through the host shim. What it is strict about:
// - work on a stream runs only when something waits for it, as late as a device may do it;
// - every call needs a current context, copies must stay inside an allocation, handles must be alive;
// - a capturing stream records; allocating or waiting meanwhile fails, as it does on a device.
// Kernels come from the host libraries in the folder AMLR_DOUBLE_KERNELS. AMLR_DOUBLE_SM is the device's
// SM number (default 90); AMLR_DOUBLE_PTX=reject refuses PTX as an older driver does.
#include "driver_double.h"

extern "C" {

int cuInit(unsigned) { return number_from("AMLR_DOUBLE_INIT", 0); }
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return kOk;
}
int cuDeviceGetCount(int* count) {
    *count = number_from("AMLR_DOUBLE_DEVICES", 1);
    return kOk;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal ? kInvalidDevice : kOk;
}
int cuDeviceGetName(char* name, int size, int) {
    std::snprintf(name, size, "driver double");
    return kOk;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int sm = number_from("AMLR_DOUBLE_SM", 90);
    *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : 1;
    return kOk;
}
int cuDeviceComputeCapability(int* major, int* minor, int) {
    const int sm = number_from("AMLR_DOUBLE_SM", 90);
    *major = sm / 10;
    *minor = sm % 10;
    return kOk;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &g_context;
    return kOk;
}
int cuDevicePrimaryCtxRelease_v2(int) { return kOk; }
int cuCtxPushCurrent_v2(void* context) {
    t_contexts.push_back(context);
    return kOk;
}
int cuCtxPopCurrent_v2(void** context) {
    if (t_contexts.empty()) return kInvalidContext;
    if (context) *context = t_contexts.back();
    t_contexts.pop_back();
    return kOk;
}
int cuCtxGetCurrent(void** context) {
    *context = t_contexts.empty() ? nullptr : t_contexts.back();
    return kOk;
}
int cuCtxSetCurrent(void* context) {
    if (!t_contexts.empty()) t_contexts.pop_back();
    if (context) t_contexts.push_back(context);
    return kOk;
}
int cuCtxGetDevice(int* device) {
    *device = 0;
    return t_contexts.empty() ? kInvalidContext : kOk;
}
int cuCtxGetApiVersion(void*, unsigned* version) {
    *version = 3020;
    return kOk;
}
int cuCtxSynchronize() {
    Guard guard(g_mutex);
    if (t_contexts.empty()) return kInvalidContext;
    for (void* handle : g_handles) drain(static_cast<Stream*>(handle));
    return kOk;
}

int cuMemAlloc_v2(Pointer* pointer, size_t bytes) {
    Guard guard(g_mutex);
    return allocate(g_device, pointer, bytes, 256);
}
int cuMemFree_v2(Pointer pointer) {
    Guard guard(g_mutex);
    cuCtxSynchronize();  // as on a device, freeing waits
    return release(g_device, pointer);
}
int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    Guard guard(g_mutex);
    return allocate(g_pinned, reinterpret_cast<Pointer*>(pointer), bytes, 4096);
}
int cuMemFreeHost(void* pointer) {
    Guard guard(g_mutex);
    return release(g_pinned, reinterpret_cast<Pointer>(pointer));
}
int cuMemcpyHtoDAsync_v2(Pointer target, const void* source, size_t bytes, void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!inside(g_device, target, bytes)) return kInvalidValue;
    void* to = reinterpret_cast<void*>(target);
    if (inside(g_pinned, reinterpret_cast<Pointer>(source), bytes))
        return enqueue(stream, [=] { std::memcpy(to, source, bytes); });
    // Pageable memory is staged during the call.
    std::vector<char> staged(static_cast<const char*>(source), static_cast<const char*>(source) + bytes);
    return enqueue(stream, [=] { std::memcpy(to, staged.data(), bytes); });
}
int cuMemcpyDtoHAsync_v2(void* target, Pointer source, size_t bytes, void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!inside(g_device, source, bytes)) return kInvalidValue;
    return enqueue(stream, [=] { std::memcpy(target, reinterpret_cast<void*>(source), bytes); });
}
int cuMemcpyDtoDAsync_v2(Pointer target, Pointer source, size_t bytes, void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!inside(g_device, source, bytes) || !inside(g_device, target, bytes)) return kInvalidValue;
    return enqueue(stream, [=] {
        std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), bytes);
    });
}
int cuMemsetD8Async(Pointer target, unsigned char value, size_t bytes, void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!inside(g_device, target, bytes)) return kInvalidValue;
    return enqueue(stream, [=] { std::memset(reinterpret_cast<void*>(target), value, bytes); });
}

int cuStreamCreate(void** stream, unsigned) {
    Guard guard(g_mutex);
    if (t_contexts.empty()) return kInvalidContext;
    *stream = new Stream;
    g_handles.insert(*stream);
    return kOk;
}
int cuStreamDestroy_v2(void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    drain(stream_of(stream));
    g_handles.erase(stream);
    delete static_cast<Stream*>(stream);
    return kOk;
}
int cuStreamSynchronize(void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (anything_captures()) return kCaptureUnsupported;
    drain(stream_of(stream));
    return kOk;
}
int cuStreamQuery(void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    return stream_of(stream)->queue.empty() ? kOk : kNotReady;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (int status = check_other(event)) return status;
    Event* waited = static_cast<Event*>(event);
    return enqueue(stream, [=] {
        while (waited->pending && !waited->stream->queue.empty()) {
            Work work = std::move(waited->stream->queue.front());
            waited->stream->queue.pop_front();
            work();
        }
    });
}
int cuEventCreate(void** event, unsigned) {
    Guard guard(g_mutex);
    if (t_contexts.empty()) return kInvalidContext;
    *event = new Event;
    g_events.insert(*event);
    return kOk;
}
int cuEventDestroy_v2(void* event) {
    Guard guard(g_mutex);
    if (int status = check_other(event)) return status;
    g_events.erase(event);
    delete static_cast<Event*>(event);
    return kOk;
}
int cuEventRecord(void* event, void* stream) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (int status = check_other(event)) return status;
    Event* marked = static_cast<Event*>(event);
    marked->stream = stream_of(stream);
    marked->pending = true;
    return enqueue(stream, [=] { marked->pending = false; });
}
int cuEventSynchronize(void* event) {
    Guard guard(g_mutex);
    if (int status = check_other(event)) return status;
    Event* waited = static_cast<Event*>(event);
    if (waited->stream) drain(waited->stream);
    return kOk;
}
int cuEventQuery(void* event) {
    Guard guard(g_mutex);
    if (int status = check_other(event)) return status;
    return static_cast<Event*>(event)->pending ? kNotReady : kOk;
}
int cuEventElapsedTime_v2(float* milliseconds, void* earlier, void* later) {
    Guard guard(g_mutex);
    if (int status = check_other(earlier)) return status;
    if (int status = check_other(later)) return status;
    if (static_cast<Event*>(later)->pending) return kNotReady;
    *milliseconds = 0.25f;
    return kOk;
}
int cuEventElapsedTime(float* milliseconds, void* earlier, void* later) {
    return cuEventElapsedTime_v2(milliseconds, earlier, later);
}

int cuModuleLoadData(void** module, const void* image) {
    Guard guard(g_mutex);
    if (t_contexts.empty()) return kInvalidContext;
    const char* bytes = static_cast<const char*>(image);
    auto* loaded = new Module;
    if (!std::memcmp(bytes, "\177ELF", 4)) {
        loaded->image.assign(bytes, image_bytes(bytes));
    } else if (!std::strncmp(bytes, "//", 2) && std::strstr(bytes, ".version")) {
        const char* rule = std::getenv("AMLR_DOUBLE_PTX");
        if (rule && !std::strcmp(rule, "reject")) return kUnsupportedPtx;
        loaded->image = bytes;
    } else {
        return kInvalidImage;
    }
    g_other.insert(loaded);
    *module = loaded;
    return kOk;
}
int cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}
int cuModuleUnload(void* module) {
    Guard guard(g_mutex);
    if (int status = check_other(module)) return status;
    g_other.erase(module);
    delete static_cast<Module*>(module);
    return kOk;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    Guard guard(g_mutex);
    if (int status = check_other(module)) return status;
    if (static_cast<Module*>(module)->image.find(name) == std::string::npos) return kNotFound;
    void* run = symbol_in_folder(std::string("host_") + name);
    void* sizes = symbol_in_folder(std::string("host_sizes_") + name);
    if (!run || !sizes) {
        std::fprintf(stderr, "driver double: no host library has %s\n", name);
        return kNotFound;
    }
    *function = new Function{reinterpret_cast<HostLaunch>(run), static_cast<const unsigned*>(sizes)};
    return kOk;
}
int cuFuncSetBlockShape(void*, int, int, int) { return kOk; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared_bytes, void* stream, void** params, void** extra) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!gx || !gy || !gz || !bx || bx * by * bz > 1024 || shared_bytes > 48 << 10) return kInvalidValue;
    const Function* kernel = static_cast<Function*>(function);
    // `extra` is {BUFFER_POINTER, buffer, BUFFER_SIZE, &size, END}: arguments packed as in a struct.
    const char* packed = params ? nullptr : static_cast<const char*>(extra[1]);
    std::vector<std::vector<char>> values;
    size_t offset = 0;
    for (size_t i = 0; kernel->sizes[i]; ++i) {
        const size_t size = kernel->sizes[i];
        offset = (offset + size - 1) / size * size;
        const char* value = packed ? packed + offset : static_cast<const char*>(params[i]);
        values.emplace_back(value, value + size);
        offset += size;
    }
    if (packed && *static_cast<size_t*>(extra[3]) != offset) return kInvalidValue;
    return enqueue(stream, [=]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        const unsigned geometry[6] = {gx, gy, gz, bx, by, bz};
        kernel->run(geometry, shared_bytes, pointers.data(), number_from("AMLR_DOUBLE_SEED", 0));
    });
}

int cuStreamBeginCapture_v2(void* stream, int) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    if (!stream) return kCaptureUnsupported;
    stream_of(stream)->capture = new std::vector<Work>;
    return kOk;
}
int cuStreamEndCapture(void* stream, void** graph) {
    Guard guard(g_mutex);
    if (int status = check(stream)) return status;
    Stream* captured = stream_of(stream);
    if (!captured->capture) return kInvalidValue;
    auto* made = new Graph{std::move(*captured->capture)};
    delete captured->capture;
    captured->capture = nullptr;
    g_other.insert(made);
    *graph = made;
    return kOk;
}
int cuStreamIsCapturing(void* stream, int* status) {
    *status = stream_of(stream)->capture != nullptr;
    return kOk;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    Guard guard(g_mutex);
    if (int status = check_other(graph)) return status;
    *executable = new Graph(*static_cast<Graph*>(graph));
    g_other.insert(*executable);
    return kOk;
}
int cuGraphLaunch(void* executable, void* stream) {
    Guard guard(g_mutex);
    if (int status = check_other(executable)) return status;
    for (const Work& node : static_cast<Graph*>(executable)->nodes) enqueue(stream, node);
    return kOk;
}
int cuGraphDestroy(void* graph) {
    Guard guard(g_mutex);
    if (int status = check_other(graph)) return status;
    g_other.erase(graph);
    delete static_cast<Graph*>(graph);
    return kOk;
}
int cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }

int cuGetErrorString(int status, const char** text) {
    *text = status == kOutOfMemory ? "out of memory" : "refused by the driver double";
    return kOk;
}
int cuGetErrorName(int, const char** name) {
    *name = "CUDA_ERROR";
    return kOk;
}

// NVRTC looks for the driver's private tables, and calls this without asking whether it is there.
int cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return kNotFound;
}

// For the tests: allocations that were not freed.
int amlr_double_live() {
    Guard guard(g_mutex);
    return static_cast<int>(g_device.size() + g_pinned.size());
}

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    *function = nullptr;
    for (const char* suffix : {"_v2", ""})
        if (!*function) {
            // RTLD_DEFAULT does not see a library that was opened with RTLD_LOCAL.
            static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
            *function = dlsym(self ? self : RTLD_DEFAULT, (std::string(name) + suffix).c_str());
        }
    if (status) *status = *function ? 0 : 1;
    return kOk;
}
int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
