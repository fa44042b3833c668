// A block holds whole groups of an image in registers: it reads x once, takes the mean, then the squares around it, and
// writes y. Images too large for that are cut into parts: a first launch leaves each part's mean and squares in the
// workspace, a second one joins them, always in the same order, and reads x again.
#include "../group_norm_silu.h"
#include "launch.h"

#include <type_traits>

namespace edm {
namespace {

constexpr int kWide = 256;      // threads of a block at most
constexpr int kHeld = 8;        // vectors in the registers of a thread
constexpr int kMaxGroups = 64;  // groups of a block
enum Mode { kWhole, kPart, kApply };

// how an image is cut: a slab is `columns` vectors side by side and `count` of them below each other; a part of it has
// `rows` * kHeld of these
struct Slabs {
    bool wide;
    int64_t groups, count, parts;
    int columns, rows, threads;
    int64_t step_channels, step_rest;  // contiguous: rows * vector elements, in whole channels and the rest
    void* workspace;  // (n, groups, parts, 2)
};

// elements as they stay in registers: two of 16 bits in a word
template <typename T, int V>
struct Packed {
    static constexpr int size = sizeof(T) == 2 && V > 1 ? 2 : 1;
    using Word = std::conditional_t<size == 2, uint32_t, T>;
    using Elements = Vec<T, size>;
};

template <typename A>
__device__ __forceinline__ A silu(A m, bool fast) {
    if (fast) return __fdividef(m, 1 + __expf(-static_cast<float>(m)));
    return m / (A(1) + exp(-m));
}

// sums[w * threads + t] of all rows into those of row 0, by halves
template <int W, typename A>
__device__ __forceinline__ void fold(A* sums, const Slabs& p, int row) {
    __syncthreads();
    for (int live = p.rows; live > 1; live = (live + 1) / 2) {
        const int half = (live + 1) / 2;
        if (row + half < live)
#pragma unroll
            for (int w = 0; w < W; ++w)
                sums[w * p.threads + threadIdx.x] += sums[w * p.threads + threadIdx.x + half * p.columns];
        __syncthreads();
    }
}

// of a group of the slab, after fold
template <int W, typename A>
__device__ __forceinline__ A total(const A* sums, const Slabs& p, int64_t group, int64_t channels) {
    if (W == 1 && p.columns == 1) return sums[0];
    A sum = 0;
    for (int64_t c = group * channels; c < (group + 1) * channels; ++c) sum += sums[c % W * p.threads + c / W];
    return sum;
}

// what one block works on
template <typename T, int V, bool Last>
struct Tile {
    using A = typename Accumulator<T>::type;
    int column, row, mine;  // mine: vectors of this thread
    int64_t part, image, first_group, channels, begin, elements;
    using P = Packed<T, V>;
    static constexpr int kWords = V / P::size;
    Vec<typename P::Word, kWords> held[kHeld];

    __device__ __forceinline__ Tile(const GroupNormSilu& s, const Slabs& p) {
        column = threadIdx.x % p.columns, row = threadIdx.x / p.columns;
        const int64_t slabs = s.groups / p.groups, tile = static_cast<int64_t>(p.rows) * kHeld;
        int64_t block = blockIdx.x;
        part = block % p.parts, block /= p.parts;
        first_group = block % slabs * p.groups, image = block / slabs;
        channels = s.c / s.groups;
        const int64_t start = part * tile, here = p.count - start < tile ? p.count - start : tile;
        begin = start + row;
        elements = here * (Last ? channels : V);  // of one group
        mine = row < p.rows && row < here ? static_cast<int>((here - row + p.rows - 1) / p.rows) : 0;
    }
    // of an element in this block
    __device__ __forceinline__ int group(int word, int e) const {
        return Last ? (column * V + word * P::size + e) / static_cast<int>(channels) : 0;
    }
    __device__ __forceinline__ int64_t channel(int v) const { return first_group * channels + column * V + v; }

    __device__ __forceinline__ void read(const GroupNormSilu& s, const Slabs& p) {
        const int64_t pitch = Last ? s.x_pitch : V;
        const T* x = static_cast<const T*>(s.x_ptr) + begin * pitch;
        x += Last ? image * s.space * pitch + channel(0) : (image * s.c + first_group * channels) * s.space;
#pragma unroll
        for (int r = 0; r < kHeld; ++r, x += p.rows * pitch)
            if (r < mine) held[r] = load<typename P::Word, kWords>(reinterpret_cast<const typename P::Word*>(x));
    }
    __device__ __forceinline__ void write(const GroupNormSilu& s, const Slabs& p) const {
        const int64_t pitch = Last ? s.c : V;
        T* y = static_cast<T*>(s.y_ptr) + begin * pitch;
        y += Last ? image * s.space * pitch + channel(0) : (image * s.c + first_group * channels) * s.space;
#pragma unroll
        for (int r = 0; r < kHeld; ++r, y += p.rows * pitch)
            if (r < mine) store(reinterpret_cast<typename P::Word*>(y), held[r]);
    }

    __device__ __forceinline__ typename P::Elements elements_of(int r, int word) const {
        typename P::Elements x;
        memcpy(&x, &held[r].v[word], sizeof(x));
        return x;
    }

    // this thread's sums of x or, with Squares, of (x - mean)^2; word by word, so that few registers are live
    template <bool Squares>
    __device__ __forceinline__ void add(A* sums, const A* mean, const Slabs& p) const {
        A sum[P::size] = {}, shift[P::size] = {};
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
#pragma unroll
            for (int e = 0; Squares && e < P::size; ++e) shift[e] = mean[group(word, e)];
#pragma unroll
            for (int r = 0; r < kHeld; ++r) {
                if (r >= mine) continue;
                const auto x = elements_of(r, word);
#pragma unroll
                for (int e = 0; e < P::size; ++e) {
                    const A d = widen(x.v[e]) - shift[e];
                    sum[e] += Squares ? d * d : d;
                }
            }
#pragma unroll
            for (int e = 0; Last && e < P::size; ++e)
                sums[(word * P::size + e) * p.threads + threadIdx.x] = sum[e], sum[e] = 0;
        }
        if (!Last) sums[threadIdx.x] = P::size == 2 ? sum[0] + sum[P::size - 1] : sum[0];
    }

    // m = (x - mean) a + b of a channel
    __device__ __forceinline__ void affine(const GroupNormSilu& s, int64_t c, A rstd, A& a, A& b) const {
        a = widen(static_cast<const T*>(s.weight_ptr)[c]) * rstd, b = widen(static_cast<const T*>(s.bias_ptr)[c]);
        if (s.scale_ptr) {
            const A scale = A(1) + widen(static_cast<const T*>(s.scale_ptr)[(s.scale_rows > 1 ? image * s.c : 0) + c]);
            a *= scale, b *= scale;
        }
        if (s.shift_ptr) b += widen(static_cast<const T*>(s.shift_ptr)[(s.shift_rows > 1 ? image * s.c : 0) + c]);
    }

    __device__ __forceinline__ void replace(const GroupNormSilu& s, int r, int word, const A* mean, const A* a,
                                            const A* b) {
        auto x = elements_of(r, word);
#pragma unroll
        for (int e = 0; e < P::size; ++e) {
            const A m = (widen(x.v[e]) - mean[e]) * a[e] + b[e];
            x.v[e] = narrow<T>(s.silu ? silu(m, sizeof(T) == 2) : m);
        }
        memcpy(&held[r].v[word], &x, sizeof(x));
    }
    __device__ __forceinline__ void normalise(const GroupNormSilu& s, const Slabs& p, const A* means, const A* rstd) {
        A a[P::size], b[P::size], mean[P::size];
        if (!Last) {
            int64_t rest = begin * V, c = divided(rest, s.space);  // rest: where vector r begins in its channel
            rest -= c * s.space;
#pragma unroll
            for (int r = 0; r < kHeld; ++r, c += p.step_channels, rest += p.step_rest) {
                if (rest >= s.space) rest -= s.space, ++c;
                if (r >= mine) continue;
                affine(s, first_group * channels + c, rstd[0], a[0], b[0]);
#pragma unroll
                for (int e = 0; e < P::size; ++e) a[e] = a[0], b[e] = b[0], mean[e] = means[0];
#pragma unroll
                for (int word = 0; word < kWords; ++word) replace(s, r, word, mean, a, b);
            }
        } else if (row < p.rows) {
#pragma unroll
            for (int word = 0; word < kWords; ++word) {
#pragma unroll
                for (int e = 0; e < P::size; ++e) {
                    mean[e] = means[group(word, e)];
                    affine(s, channel(word * P::size + e), rstd[group(word, e)], a[e], b[e]);
                }
#pragma unroll
                for (int r = 0; r < kHeld; ++r)
                    if (r < mine) replace(s, r, word, mean, a, b);
            }
        }
    }
};

// mean and squares of a whole group from those of its parts
template <typename A>
__device__ __forceinline__ void join(const A* parts, const Slabs& p, int64_t step, int64_t whole, A& mean, A& squares) {
    const int64_t tile = static_cast<int64_t>(p.rows) * kHeld;
    mean = squares = 0;
    for (int64_t k = 0; k < p.parts; ++k) {
        const int64_t here = p.count - k * tile < tile ? p.count - k * tile : tile;
        mean += (parts[2 * k] - parts[0]) * (A(here * step) / A(whole));  // apart from the first, to lose no digits
    }
    mean += parts[0];
    for (int64_t k = 0; k < p.parts; ++k) {
        const int64_t here = p.count - k * tile < tile ? p.count - k * tile : tile;
        const A d = parts[2 * k] - mean;
        squares += parts[2 * k + 1] + d * d * A(here * step);
    }
}

template <typename T, int V, bool Last, int M>
__global__ void __launch_bounds__(kWide, sizeof(T) == 4 && M != kApply ? 3 : 2)
    _group_norm_silu_fwd(const GroupNormSilu s, const Slabs p) {
    using A = typename Accumulator<T>::type;
    constexpr int W = Last ? V : 1;
    __shared__ A sums[W * kWide], mean[kMaxGroups], rstd[kMaxGroups];
    Tile<T, V, Last> tile(s, p);
    tile.read(s, p);
    const bool leader = threadIdx.x < p.groups;  // one thread for each group of the block
    const int64_t group = tile.image * s.groups + tile.first_group + threadIdx.x, whole = tile.channels * s.space;
    A* parts = static_cast<A*>(p.workspace) + group * p.parts * 2;
    A squares = 0;
    if (M != kApply) {
        tile.template add<false>(sums, mean, p);
        fold<W>(sums, p, tile.row);
        if (leader) mean[threadIdx.x] = total<W>(sums, p, threadIdx.x, tile.channels) / A(tile.elements);
        __syncthreads();
        tile.template add<true>(sums, mean, p);
        fold<W>(sums, p, tile.row);
        if (leader) squares = total<W>(sums, p, threadIdx.x, tile.channels);
    }
    if (M == kPart) {
        if (leader) parts[2 * tile.part] = mean[threadIdx.x], parts[2 * tile.part + 1] = squares;
        return;
    }
    if (leader) {
        if (M == kApply) join(parts, p, Last ? tile.channels : V, whole, mean[threadIdx.x], squares);
        rstd[threadIdx.x] = A(1) / sqrt(squares / A(whole) + A(s.eps));
        if (s.stats_ptr && tile.part == 0) {
            A* stats = static_cast<A*>(s.stats_ptr) + group;
            stats[0] = mean[threadIdx.x], stats[s.n * s.groups] = 0, stats[2 * s.n * s.groups] = rstd[threadIdx.x];
        }
    }
    __syncthreads();
    tile.normalise(s, p, mean, rstd);
    tile.write(s, p);
}

// with slabs of at least `span` bytes side by side (channels last)
template <typename T>
Slabs cut(const GroupNormSilu& s, int64_t span) {
    const int64_t channels = s.c / s.groups, size = sizeof(T);
    int64_t width = kWidth<T>, groups = 1;
    const bool even = s.channels_last ? s.c % width == 0 && s.x_pitch % width == 0 : s.space % width == 0;
    bool wide = even && aligned(s.x_ptr) && aligned(s.y_ptr);
    if (s.channels_last) {
        // as few groups as give whole vectors and sectors
        const auto fits = [&](int64_t k) { return s.groups % k == 0 && (!wide || k * channels % width == 0); };
        while (groups < s.groups && !(fits(groups) && groups * channels * size >= span)) ++groups;
        if (!fits(groups) || groups > kMaxGroups || groups * channels > kWide * (wide ? width : 1)) {
            groups = 1;
            wide = wide && channels % width == 0;
        }
    }
    width = wide ? width : 1;
    Slabs p{wide, groups, s.channels_last ? s.space : channels * s.space / width, 1, 1, 1, 1, 0, 0, s.workspace_ptr};
    p.columns = static_cast<int>(s.channels_last ? groups * channels / width : 1);
    const int64_t warps = (p.columns * p.count + 32 * kHeld - 1) / (32 * kHeld);
    p.threads = static_cast<int>(std::min<int64_t>(kWide, 32 * std::max<int64_t>(2, warps)));
    while (p.threads < kWide && p.threads / p.columns * kHeld < p.count) p.threads += 32;
    p.rows = p.threads / p.columns;
    p.step_channels = p.rows * width / s.space, p.step_rest = p.rows * width % s.space;
    if (p.rows) p.parts = (p.count + p.rows * kHeld - 1) / (p.rows * kHeld);
    return p;
}

// two sectors side by side, or one where that is what it takes to read x once
template <typename T>
Slabs cut(const GroupNormSilu& s) {
    const Slabs two = cut<T>(s, 64), one = cut<T>(s, 32);
    return two.parts > 1 && one.parts == 1 ? one : two;
}

template <typename T, int V, bool Last>
void start(const GroupNormSilu& s, const Slabs& p, int64_t blocks, void* stream) {
    if (p.parts == 1) return launch(_group_norm_silu_fwd<T, V, Last, kWhole>, blocks, p.threads, stream, s, p);
    launch(_group_norm_silu_fwd<T, V, Last, kPart>, blocks, p.threads, stream, s, p);
    launch(_group_norm_silu_fwd<T, V, Last, kApply>, blocks, p.threads, stream, s, p);
}

template <typename T>
int run(const GroupNormSilu& s, int device, void* stream) {
    const Slabs p = cut<T>(s);
    const int64_t blocks = s.n * (s.groups / p.groups) * p.parts;
    if (p.rows < 1 || blocks > INT32_MAX || (p.parts > 1 && !p.workspace)) return kBadArgument;
    DeviceGuard guard(device);
    if (!guard.ok()) return guard.status();
    constexpr int V = kWidth<T>;
    if (s.channels_last)
        p.wide ? start<T, V, true>(s, p, blocks, stream) : start<T, 1, true>(s, p, blocks, stream);
    else
        p.wide ? start<T, V, false>(s, p, blocks, stream) : start<T, 1, false>(s, p, blocks, stream);
    return guard.status();
}

template <typename T>
int64_t workspace(const GroupNormSilu& s) {
    const int64_t parts = cut<T>(s).parts;
    return parts == 1 ? 0 : s.n * s.groups * parts * 2 * sizeof(typename Accumulator<T>::type);
}

bool good(const GroupNormSilu& s) {
    return s.n >= 0 && s.c >= 1 && s.space >= 0 && s.groups >= 1 && s.c % s.groups == 0 && s.x_pitch >= s.c;
}

int64_t workspace_for(const GroupNormSilu& s) { EDM_FOR_DTYPE(s.dtype, workspace, s) }

}  // namespace

int64_t group_norm_silu_fwd_workspace_cuda(const GroupNormSilu& s) {
    return good(s) && s.n && s.space ? workspace_for(s) : 0;
}

int group_norm_silu_fwd_cuda(const GroupNormSilu& s, int device, void* stream) {
    if (!good(s)) return kBadArgument;
    if (s.n == 0 || s.space == 0) return kOk;
    EDM_FOR_DTYPE(s.dtype, run, s, device, stream)
}

}  // namespace edm
