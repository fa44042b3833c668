// Cuts attention into (image, head) times blocks of queries; a block goes over the keys in steps, with a running
// maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), so that no matrix of pixels x pixels exists. How the
// work is cut depends on the sizes of one image alone: neither threads nor the batch change a bit.
#pragma once

#include <algorithm>
#include <cmath>

#include "../../attention.h"
#include "../_attention.h"
#include "../_layout.h"
#include "../_scratch.h"
#include "../simd/vector.h"
#include "exp.h"
#include "matmul.h"
#include "tile.h"

EDM_BEGIN

constexpr int kParts = kPanel / kLanes;  // vectors of a panel's width

static inline float exp_one(float x) {
    V e[kParts] = {};
    e[0] = set1(x);
    exponentials<kParts>(e);
    float lanes[kLanes];
    store(lanes, e[0]);
    return lanes[0];
}

// c[i, :] (+)= a[i, :] panel for `count` rows of a. Long sums are taken in parts: their rounding errors grow less, and
// a part of the panel stays in the first-level cache.
static void multiply(const float* a, int64_t a_pitch, int64_t count, int64_t depth, const float* panel, float* c,
                     int64_t c_pitch, bool add = false) {
    const int64_t groups = (count + kRows - 1) / kRows;
    for (int64_t k = 0; k < depth; k += kPartTerms)
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = count * g / groups, few = count * (g + 1) / groups - first;
            multiply_few(int(few), EvenRows<float>{a + first * a_pitch + k, a_pitch},
                         {std::min(kPartTerms, depth - k), panel + k * kPanel, c + first * c_pitch, c_pitch,
                          add || k > 0});
        }
}

// the sum of all lanes, in one order for all instruction sets
static inline float sum_in_order(V* acc) {
    for (int half = kParts / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) acc[i] = acc[i] + acc[i + half];
    float lanes[kLanes];
    store(lanes, acc[0]);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline float largest(const float* s, int64_t n) {
    V acc[kParts];
    for (int i = 0; i < kParts; ++i) acc[i] = set1(-INFINITY);
    for (int64_t k = 0; k < n; k += kPanel)
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) acc[i] = max_of(load(s + k + i * kLanes), acc[i]);
    float lanes[kLanes];
    for (int i = 1; i < kParts; ++i) acc[0] = max_of(acc[i], acc[0]);
    store(lanes, acc[0]);
    return *std::max_element(lanes, lanes + kLanes);
}

// One row of n more logits s becomes weights e^(s - max); max and sum go on. Returns the factor due to earlier sums.
static float soften(float* s, int64_t n, float& max, float& sum) {
    std::fill(s + n, s + padded(n), -INFINITY);
    const float before = max;
    max = std::max(max, largest(s, n));
    if (max == -INFINITY) max = 0;  // no key counts yet: weights 0, not those of inf - inf
    const V shift = set1(max);
    V acc[kParts] = {};
    for (int64_t k = 0; k < n; k += kPanel) {
        V e[kParts];
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) e[i] = load(s + k + i * kLanes) - shift;
        exponentials<kParts>(e);
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) {
            store(s + k + i * kLanes, e[i]);
            acc[i] = acc[i] + e[i];
        }
    }
    const float scale = before == max ? 1 : exp_one(before - max);
    sum = sum * scale + sum_in_order(acc);
    return scale;
}

// q, k or v (which = 0, 1, 2) of image and head `pair` in qkv or its gradient, up to pixel `end`
static View view_qkv(const Attention& s, const void* qkv, int64_t pair, int which, int64_t end) {
    const int64_t offset = pair / s.heads * s.qkv.image + pair % s.heads * s.qkv.head + which * s.qkv.which;
    return {static_cast<float*>(const_cast<void*>(qkv)) + offset, s.qkv.channel, s.qkv.pixel, s.channels, end};
}

static View view_a(const Attention& s, const void* a, int64_t pair, int64_t end) {
    const int64_t offset = pair / s.heads * s.a.image + pair % s.heads * s.a.head;
    return {static_cast<float*>(const_cast<void*>(a)) + offset, s.a.channel, s.a.pixel, s.channels, end};
}

// k and v of image and head `pair`
static void pack_keys(const Attention& s, int64_t pair, float* scratch) {
    const ForwardScratch f(s, scratch);
    pack_channels(view_qkv(s, s.qkv_ptr, pair, 1, s.pixels), f.k);
    pack_pixels(view_qkv(s, s.qkv_ptr, pair, 2, s.pixels), 0, 1, f.v, kPanel, s.pixels * kPanel);
}

// queries [first, last) of image and head `pair`
static void attend(const Attention& s, int64_t pair, int64_t first, int64_t last, float* scratch) {
    const ForwardScratch f(s, scratch);
    const int64_t rows = last - first;
    pack_pixels(view_qkv(s, s.qkv_ptr, pair, 0, last), first, scale_of(s), f.q, f.pitch, kPanel);
    float max[kQueries], sum[kQueries] = {};
    std::fill(max, max + rows, -INFINITY);
    for (int64_t key = 0; key < s.pixels; key += kKeys) {
        const int64_t keys = std::min(kKeys, s.pixels - key);
        for (int64_t k = 0; k < keys; k += kPanel)
            multiply(f.q, f.pitch, rows, s.channels, f.k + (key + k) * s.channels, f.w + k, kWeightPitch);
        for (int64_t i = 0; i < rows; ++i) {
            const float scale = soften(f.w + i * kWeightPitch, keys, max[i], sum[i]);
            if (key && scale != 1)
                for (int64_t c = 0; c < s.channels; c += kLanes) {
                    float* a = f.a + i * f.pitch + c;
                    store(a, load(a) * set1(scale));
                }
        }
        for (int64_t c = 0; c < s.channels; c += kPanel)
            multiply(f.w, kWeightPitch, rows, keys, f.v + c * s.pixels + key * kPanel, f.a + c, f.pitch, key > 0);
    }
    for (int64_t i = 0; i < rows; ++i) sum[i] = 1 / sum[i];
    unpack_pixels(f.a, f.pitch, sum, 1, view_a(s, s.a_ptr, pair, last), first);
    if (float* stats = static_cast<float*>(s.stats_ptr)) {
        std::copy(max, max + rows, stats + pair * s.pixels + first);
        std::copy(sum, sum + rows, stats + (s.n * s.heads + pair) * s.pixels + first);
    }
}

// The weights w of one row from logits and statistics, and the gradient of its logits from dw = da V and dot = da a.
static void weigh(float* w, float* dw, int64_t n, float max, float factor, float dot) {
    for (int64_t k = 0; k < n; k += kPanel) {
        V e[kParts];
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) e[i] = load(w + k + i * kLanes) - set1(max);
        exponentials<kParts>(e);
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) {
            float *at = w + k + i * kLanes, *d = dw + k + i * kLanes;
            const V p = e[i] * set1(factor);
            store(at, p);
            store(d, p * (load(d) - set1(dot)));
        }
    }
}

static float dot_of(const float* a, const float* b, int64_t n) {
    V acc[kParts] = {};
    for (int64_t k = 0; k < n; k += kPanel)
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i)
            acc[i] = fma(load(a + k + i * kLanes), load(b + k + i * kLanes), acc[i]);
    return sum_in_order(acc);
}

// to (columns, rows) from a (rows, columns); whole tiles, so that both have room for multiples of kLanes
static void turn(const float* a, int64_t rows, int64_t columns, float* to) {
    for (int64_t i = 0; i < rows; i += kLanes)
        for (int64_t j = 0; j < columns; j += kLanes) {
            V t[kLanes];
            for (int k = 0; k < kLanes; ++k) t[k] = load(a + (i + k) * kWeightPitch + j);
            transpose(t);
            for (int k = 0; k < kLanes; ++k) store(to + (j + k) * kTurnedPitch + i, t[k]);
        }
}

// queries [first, last): q, da, a to scratch, and da a of each
static void pack_queries(const Attention& s, int64_t pair, int64_t first, int64_t last,
                         const BackwardScratch& b, float* dot) {
    const View q = view_qkv(s, s.qkv_ptr, pair, 0, last), da = view_a(s, s.da_ptr, pair, last);
    pack_pixels(q, first, scale_of(s), b.q, b.pitch, kPanel);
    pack_pixels(da, first, 1, b.da, b.pitch, kPanel);
    const int64_t rows = last - first;  // what is packed once is easier to pack again
    pack_pixels({b.q, 1, b.pitch, s.channels, rows}, 0, 1, b.q_panels, kPanel, kQueries * kPanel);
    pack_pixels({b.da, 1, b.pitch, s.channels, rows}, 0, 1, b.da_panels, kPanel, kQueries * kPanel);
    pack_pixels(view_a(s, s.a_ptr, pair, last), first, 1, b.dq, b.pitch, kPanel);  // dq itself comes later
    for (int64_t i = 0; i < rows; ++i) dot[i] = dot_of(b.da + i * b.pitch, b.dq + i * b.pitch, s.channels);
}

// dq of queries [first, last), and their part of dk and dv
static void differentiate_queries(const Attention& s, int64_t pair, int64_t first, int64_t last,
                                  const BackwardScratch& b) {
    const int64_t rows = last - first;
    const float* max = static_cast<const float*>(s.stats_ptr) + pair * s.pixels;
    const float* factor = max + s.n * s.heads * s.pixels;
    float dot[kQueries];
    pack_queries(s, pair, first, last, b, dot);
    for (int64_t key = 0; key < s.pixels; key += kKeys) {
        const int64_t keys = std::min(kKeys, s.pixels - key);
        for (int64_t k = 0; k < keys; k += kPanel) {
            multiply(b.q, b.pitch, rows, s.channels, b.k + (key + k) * s.channels, b.w + k, kWeightPitch);
            multiply(b.da, b.pitch, rows, s.channels, b.v + (key + k) * s.channels, b.dw + k, kWeightPitch);
        }
        for (int64_t i = 0; i < rows; ++i)
            weigh(b.w + i * kWeightPitch, b.dw + i * kWeightPitch, keys, max[first + i], factor[first + i], dot[i]);
        turn(b.w, rows, keys, b.w_turned);
        turn(b.dw, rows, keys, b.dw_turned);
        for (int64_t c = 0; c < s.channels; c += kPanel) {
            const int64_t at = key * b.pitch + c;
            multiply(b.w_turned, kTurnedPitch, keys, rows, b.da_panels + c * kQueries, b.dv + at, b.pitch, first > 0);
            multiply(b.dw_turned, kTurnedPitch, keys, rows, b.q_panels + c * kQueries, b.dk + at, b.pitch, first > 0);
            const float* k = b.k_panels + c * s.pixels + key * kPanel;
            multiply(b.dw, kWeightPitch, rows, keys, k, b.dq + c, b.pitch, key > 0);
        }
    }
    const float scale = scale_of(s);
    unpack_pixels(b.dq, b.pitch, &scale, 0, view_qkv(s, s.dqkv_ptr, pair, 0, last), first);
}

// the gradient of image and head `pair`
static void differentiate(const Attention& s, int64_t pair, float* scratch) {
    const BackwardScratch b(s, scratch);
    const float one = 1;
    pack_channels(view_qkv(s, s.qkv_ptr, pair, 1, s.pixels), b.k);
    pack_channels(view_qkv(s, s.qkv_ptr, pair, 2, s.pixels), b.v);
    pack_pixels(view_qkv(s, s.qkv_ptr, pair, 1, s.pixels), 0, 1, b.k_panels, kPanel, s.pixels * kPanel);
    for (int64_t first = 0; first < s.pixels; first += kQueries)
        differentiate_queries(s, pair, first, std::min(first + kQueries, s.pixels), b);
    unpack_pixels(b.dk, b.pitch, &one, 0, view_qkv(s, s.dqkv_ptr, pair, 1, s.pixels), 0);
    unpack_pixels(b.dv, b.pitch, &one, 0, view_qkv(s, s.dqkv_ptr, pair, 2, s.pixels), 0);
}

static int attention_fwd(const Attention& s, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    const int64_t blocks = (s.pixels + kQueries - 1) / kQueries, floats = ForwardScratch::floats(s);
    parallel_for(s.n * s.heads * blocks, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(floats);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t pair = item / blocks, block = item % blocks;
            if (item == begin || block == 0) pack_keys(s, pair, scratch);
            attend(s, pair, s.pixels * block / blocks, s.pixels * (block + 1) / blocks, scratch);
        }
    });
    return kOk;
}

static int attention_bwd(const Attention& s, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    if (!s.a_ptr || !s.stats_ptr || !s.da_ptr || !s.dqkv_ptr) return kBadArgument;
    parallel_for(s.n * s.heads, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(BackwardScratch::floats(s));
        for (int64_t pair = begin; pair < end; ++pair) differentiate(s, pair, scratch);
    });
    return kOk;
}
EDM_END
