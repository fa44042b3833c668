// float16 on the host; the compiler's own type rounds to nearest, ties to even.
#pragma once

struct __half {
    _Float16 x;
};
inline float __half2float(__half h) { return static_cast<float>(h.x); }
inline __half __float2half_rn(float f) { return {static_cast<_Float16>(f)}; }
