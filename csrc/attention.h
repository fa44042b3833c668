// attention: softmax(Q^T K / sqrt(channels)) V over the pixels of an image, for each head; its gradient.
#pragma once

#include "arguments.h"

namespace edm {

// Strides, in elements, say where q, k, v lie: interleaved or apart, channels first or last. Fast where the stride of
// pixels is 1, or that of channels is 1 or 3.
struct Attention {
    int dtype;                    // float32
    const void* qkv_ptr;          // (n, heads, which of q k v, channels, pixels)
    void* a_ptr;                  // (n, heads, channels, pixels); input of the backward
    void* stats_ptr;              // (2, n, heads, pixels) or null: largest logit and 1 / sum of exp(logit - largest)
    const void* da_ptr;           // backward: strides as a
    void* dqkv_ptr;               // backward: strides as qkv
    int64_t n, heads, channels, pixels;
    struct { int64_t image, head, which, channel, pixel; } qkv;
    struct { int64_t image, head, channel, pixel; } a;
};

template <>
inline std::vector<Field> fields<Attention>() {
    using S = Attention;
    return {MUST(kAny, dtype), MUST(kAny, qkv_ptr), MUST(kAny, a_ptr), BOTH(kBackward, kForward, stats_ptr),
            MUST(kBackward, da_ptr), MUST(kBackward, dqkv_ptr),
            MUST(kAny, n), MUST(kAny, heads), MUST(kAny, channels), MUST(kAny, pixels),
            MUST(kAny, qkv.image), MUST(kAny, qkv.head), MUST(kAny, qkv.which), MUST(kAny, qkv.channel),
            MUST(kAny, qkv.pixel), MUST(kAny, a.image), MUST(kAny, a.head), MUST(kAny, a.channel), MUST(kAny, a.pixel)};
}

}  // namespace edm
