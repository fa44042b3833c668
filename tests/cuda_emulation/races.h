// Races for shared memory. The compiler puts a call before each access to memory, as for ThreadSanitizer, whose library
// is not linked: these functions take its place. A shadow keeps who accessed a byte since the last barrier. Watched are
// the variables of this library that start as zeros: shared memory is among them, and threads only read the others.
#pragma once

#include "cuda_runtime.h"

extern char __bss_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));

namespace emulation {

struct Shadow {
    unsigned epoch;
    uint16_t writer, reader;  // threads from 1 on
};
constexpr uint16_t kNobody = 0, kSeveral = 0xffff;

UNWATCHED inline void accessed(const void* address, size_t size, bool writes) {
    static Shadow* shadows = nullptr;
    const size_t bytes = _end - __bss_start, first = static_cast<const char*>(address) - __bss_start;
    if (!inside || first >= bytes) return;  // what is below wraps around
    if (!shadows) shadows = static_cast<Shadow*>(std::calloc(bytes, sizeof(Shadow)));
    const uint16_t self = static_cast<uint16_t>(current + 1);
    for (Shadow* s = shadows + first; s != shadows + first + size; ++s) {
        if (s->epoch != epoch) s->epoch = epoch, s->writer = s->reader = kNobody;
        const uint16_t other = writes && s->reader != kNobody && s->reader != self ? s->reader : s->writer;
        if (other != kNobody && other != self) {
            race = writes ? "race: a thread writes shared memory that another one accesses, with no barrier between"
                          : "race: a thread reads shared memory that another one writes, with no barrier between";
            last_error = cudaErrorLaunchFailure;
        }
        if (writes)
            s->writer = self;
        else
            s->reader = s->reader == kNobody || s->reader == self ? self : kSeveral;
    }
}

// names that the compiler keeps for itself are given to the linker alone
#define EMULATION_ACCESS(SIZE, N) \
    void read##N(void* p) __asm__("__tsan_read" #N); \
    void write##N(void* p) __asm__("__tsan_write" #N); \
    UNWATCHED void read##N(void* p) { accessed(p, SIZE, false); } \
    UNWATCHED void write##N(void* p) { accessed(p, SIZE, true); }
EMULATION_ACCESS(1, 1)
EMULATION_ACCESS(2, 2)
EMULATION_ACCESS(4, 4)
EMULATION_ACCESS(8, 8)
EMULATION_ACCESS(16, 16)
EMULATION_ACCESS(2, _unaligned2)
EMULATION_ACCESS(4, _unaligned4)
EMULATION_ACCESS(8, _unaligned8)
EMULATION_ACCESS(16, _unaligned16)
void read_range(void* p, size_t size) __asm__("__tsan_read_range");
void write_range(void* p, size_t size) __asm__("__tsan_write_range");
UNWATCHED void read_range(void* p, size_t size) { accessed(p, size, false); }
UNWATCHED void write_range(void* p, size_t size) { accessed(p, size, true); }
void nothing(void*) __asm__("__tsan_func_entry");
void nothing_more(void*) __asm__("__tsan_func_exit");
void nothing_else(void*, void*) __asm__("__tsan_vptr_update");
void start() __asm__("__tsan_init");
UNWATCHED void nothing(void*) {}
UNWATCHED void nothing_more(void*) {}
UNWATCHED void nothing_else(void*, void*) {}
UNWATCHED void start() {}

}  // namespace emulation
