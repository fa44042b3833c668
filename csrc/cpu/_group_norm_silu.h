// What the forward and the backward of group_norm_silu share.
//
// Work items are an image's group (contiguous), or a slab of whole groups of an image (channels last). Sums run in
// fixed lanes and blocks, uncontracted: one result on every instruction set and thread count. Only y in float32,
// channels last, has fused multiply-adds where the instruction set has them (kernels/normalise.h).
#pragma once

#include <algorithm>

#include "../group_norm_silu.h"

namespace edm {

// scale + 1 of one channel of an image
template <typename T>
EDM_INLINE double scale_of(const GroupNormSilu& s, int64_t n, int64_t c) {
    return s.scale_ptr ? 1 + double(static_cast<const T*>(s.scale_ptr)[(s.scale_rows > 1 ? n * s.c : 0) + c]) : 1;
}

// Channels last: a work item is a slab of whole groups of one image, all of them if there are images enough for the
// threads. No sum crosses a group, so that results do not depend on the width.
inline int64_t slab_channels(const GroupNormSilu& s, int threads) {
    const int64_t per_group = s.c / s.groups, slabs = std::max<int64_t>(1, (threads + s.n - 1) / s.n);
    int64_t width = per_group;
    while (width < s.c && (width * slabs < s.c || width % 16)) width += per_group;
    return std::min(width, s.c);
}

template <typename T>
struct Slab {
    int64_t n, first, width;  // image; channels first .. first + width
    int64_t offset;           // of its first element
    Slab(const GroupNormSilu& s, int64_t most, int64_t item) {
        const int64_t slabs = (s.c + most - 1) / most;
        n = item / slabs;
        first = item % slabs * most;
        width = std::min(most, s.c - first);
        offset = n * s.space * s.c + first;
    }
};

// body(most channels of an item, begin, end) over all items
template <typename F>
void for_items(const GroupNormSilu& s, int threads, F&& body) {
    const int64_t width = s.channels_last ? slab_channels(s, threads) : s.c / s.groups;
    const int64_t items = s.n * ((s.c + width - 1) / width);
    const int64_t grain = std::max<int64_t>(1, 8192 / (width * s.space));
    parallel_for(items, grain, threads, [&](int64_t begin, int64_t end) { body(width, begin, end); });
}

inline bool rows_fit(const void* p, int64_t rows, int64_t n) { return p ? rows == 1 || rows == n : rows == 0; }

inline bool sizes_fit(const GroupNormSilu& s) {
    return s.n > 0 && s.c > 0 && s.space > 0 && s.groups > 0 && s.c % s.groups == 0 &&
           rows_fit(s.scale_ptr, s.scale_rows, s.n) && rows_fit(s.shift_ptr, s.shift_rows, s.n);
}

}  // namespace edm
