// The weights of a convolution as its algorithms multiply with them, packed beforehand or transformed at each call, and
// the chunks of tiles that transformed ones meet.
#pragma once

#include <algorithm>

#include "_conv2d.h"

namespace edm {
namespace {

// planes of a transformed weight, of one phase: positions of the kernel, or products of a tile; -1: no such algorithm
inline int64_t planes_of(int algorithm, int64_t kernel) {
    const int products = products_of(algorithm);
    if (algorithm == kDirect && (kernel == 1 || kernel == 3)) return kernel * kernel;
    if (kernel == 1) return algorithm == kInt16 ? 1 : -1;
    if (kernel != 3 || algorithm >= 2 * kPlain) return -1;
    if (algorithm == kWinograd4x8Plain) return 60;
    if (products == kWinograd2) return 16;
    if (products == kWinograd4 || algorithm == kWinograd4Int16) return 36;
    if (products == kWinograd2Up) return 9;
    return products == kWinograd4Up || algorithm == kWinograd4UpInt16 ? 25 : -1;
}

// a weight (out, in, taps), or (in, out, taps) of which the adjoint is meant
struct Filters {
    const float* weight;
    int64_t out, in;
    int taps;
    bool transposed;
};

// Plain weights are transformed a panel and kDepth input channels at a time, and so should serve many tiles. Threads that
// have kOwnTiles or more each take tiles of their own: what another core has written may be far away. Of transformed
// images kSharedFloats, or kOwnFloats for each thread, still lie in the third-level cache when they are multiplied.
constexpr int64_t kDepth = 256, kPlaneStep = kDepth * 32 + 16, kTileGroup = 12, kOwnTiles = 48;
constexpr int64_t kSharedFloats = 7 << 18, kOwnFloats = 1 << 22;

// The tiles of one phase in chunks of `tiles`, the last one perhaps of fewer.
struct Chunks {
    int64_t planes, pitch, tiles;  // pitch: floats of a tile's row in v
    bool shared;                   // by all threads, which take panels; otherwise each thread takes chunks
    // threads = 0: for as many as share the tiles
    Chunks(const Conv2d& s, int64_t total, int threads)
        : planes(planes_of(s.algorithm, s.kernel)), pitch(row_pitch(s.in)),
          shared(threads == 0 || total < threads * kOwnTiles) {
        const int64_t most = std::max<int64_t>(kTileGroup, (shared ? kSharedFloats : kOwnFloats) / (planes * pitch));
        int64_t count = (total + most - 1) / most;
        if (!shared) count = (count + threads - 1) / threads * threads;
        tiles = (total + count - 1) / count;
        if (shared) tiles = (tiles + kTileGroup - 1) / kTileGroup * kTileGroup;
    }
};

}  // namespace
}  // namespace edm
