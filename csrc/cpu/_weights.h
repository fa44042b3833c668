// The weights of a convolution as its algorithms multiply with them, packed beforehand or transformed at each call, and
// the chunks of tiles that transformed ones meet.
#pragma once

#include <algorithm>
#include <cmath>

#include "_conv2d.h"
#include "_layout.h"
#include "_pairs.h"

namespace edm {

// a weight (out, in, taps), or (in, out, taps) of which the adjoint is meant
struct Filters {
    const float* weight;
    int64_t out, in;
    int taps;
    bool transposed;
    int64_t by_out() const { return transposed ? taps : in * taps; }  // floats from one output channel to the next
    int64_t by_in() const { return transposed ? out * taps : taps; }
};

// Paired: what scales each input channel of an image, what takes that back in the weights, what scales the weights of
// each output channel then, and what takes that back in the sums; of whole panels of outputs. See _pairs.h.
struct Balance {
    float *channels = nullptr, *weights = nullptr, *outputs = nullptr, *back = nullptr;
    Balance(const void* memory, int64_t in, int64_t out) {
        if (!memory) return;
        channels = static_cast<float*>(const_cast<void*>(memory)), weights = channels + in;
        outputs = weights + in, back = outputs + padded(out);
    }
    static constexpr int64_t floats(int64_t in, int64_t out) { return 2 * (in + padded(out)); }

    // the root mean square of filters [first, last) of inputs [begin, end)
    static float size(const Filters& f, int64_t first, int64_t last, int64_t begin, int64_t end,
                      const float* scales) {
        double squares = 0;
        for (int64_t o = first; o < last; ++o)
            for (int64_t i = begin; i < end; ++i)
                for (int64_t j = 0; j < f.taps; ++j) {
                    const double w = f.weight[o * f.by_out() + i * f.by_in() + j];
                    squares += w * w * (scales ? double(scales[i]) * scales[i] : 1);
                }
        return float(std::sqrt(squares / double((last - first) * (end - begin) * f.taps)));
    }
    // input channel i of those that are summed `together`
    void set_channel(const Filters& f, int64_t i, int64_t together) {
        const Scale scale(size(f, 0, f.out, i, i + 1, nullptr), Scale::kMostOfChannel);
        const int64_t depth = std::min(together, f.in - i / together * together);
        const float sign = is_negated(i % together, depth) ? -1.0f : 1.0f;
        channels[i] = sign * scale.back, weights[i] = sign * scale.to;
    }
    void set_output(const Filters& f, int64_t o, float balance) {
        const Scale scale(o < f.out ? size(f, o, o + 1, 0, f.in, weights) * balance : 0);
        outputs[o] = scale.to, back[o] = scale.back;
    }
};

// Unpacked weights are transformed a panel and kDepth input channels at a time, and so should serve many tiles. Threads
// that have kOwnTiles or more each take tiles of their own: what another core has written may be far away. Of
// transformed images kSharedFloats, or kOwnFloats for each thread, still lie in the third-level cache when they are
// multiplied.
constexpr int64_t kDepth = 256, kPlaneStep = (kDepth + parts_of(kDepth, kShortPairedChunk)) * kPanel + 16;
constexpr int64_t kTileGroup = 12, kOwnTiles = 48;
constexpr int64_t kSharedFloats = 7 << 18, kOwnFloats = 1 << 22;

// Paired: where in a row its corrections begin
constexpr int64_t corrections_at(int64_t in) { return (in + 15) / 16 * 16; }

// floats from plane to plane of a tile: paired, rows end with their corrections, and the first plane's with the factor
// that takes back the scale of the tile
constexpr int64_t tile_pitch(const Algorithm& algorithm, int64_t in) {
    if (!algorithm.paired()) return row_pitch(in);
    const int64_t chunk = kShortPairedChunk;
    const int64_t corrections = in / kDepth * parts_of(kDepth, chunk) + parts_of(in % kDepth, chunk);
    return corrections_at(in) + (corrections + 16) / 16 * 16;
}

// The tiles of one phase in chunks of `tiles`, the last one perhaps of fewer.
struct Chunks {
    int64_t planes, pitch, tile, tiles;  // pitch, tile: floats from plane to plane, and from tile to tile
    bool shared;  // by all threads, which take panels; otherwise each thread takes chunks
    // threads = 0: for as many as share the tiles
    Chunks(const Conv2d& s, int64_t total, int threads)
        : planes(kAlgorithms[s.algorithm].planes(s.kernel)), pitch(tile_pitch(kAlgorithms[s.algorithm], s.in)),
          tile(spread(planes * pitch)), shared(threads == 0 || total < threads * kOwnTiles) {
        const int64_t most = std::max<int64_t>(kTileGroup, (shared ? kSharedFloats : kOwnFloats) / tile);
        int64_t count = (total + most - 1) / most;
        if (!shared) count = (count + threads - 1) / threads * threads;
        tiles = (total + count - 1) / count;
        if (shared) tiles = (tiles + kTileGroup - 1) / kTileGroup * kTileGroup;
    }
};

// of one instruction set
struct Conv2dKernels {
    // tiles or pixels [first, last), panels [panel, last_panel) of the outputs, with a packed weight
    void (*convolve)(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel, int64_t last_panel,
                     float* scratch);
    // with an unpacked weight: tiles [first, last) of a chunk that begins with tile `base`, to the planes v; then one
    // panel of their outputs
    void (*read_tiles)(const Conv2d& s, const Cut& cut, Phase phase, int64_t base, int64_t first, int64_t last,
                       const Chunks& chunks, float* v, float* image);
    void (*multiply_tiles)(const Conv2d& s, const Filters& filters, const Cut& cut, Phase phase, int64_t base,
                           int64_t first, int64_t last, const Chunks& chunks, int64_t panel, const float* v,
                           float* scratch);
    decltype(multiply_tiles) multiply_tiles_in_pairs;
    void (*pack_panel)(const Conv2dPack& s, Phase phase, int64_t panel, int64_t count, int64_t out, int64_t in,
                       const Balance& balance);
};

}  // namespace edm
