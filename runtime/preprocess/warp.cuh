// Pre-processing, one source for host (C++17) and device (CUDA): undistort, re-project, resize by area, normalise, NCHW.
//
// The geometry is folded once into a footprint table: for every output pixel a window of source pixels and their weights.
// Weights are 15-bit fixed point and sums are integers, so host and device agree bit for bit whatever the compiler does;
// only the last step, value * scale + bias, is floating point, with one rounding after each operation on both sides.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define WARP_HD __host__ __device__ __forceinline__
#else
#define WARP_HD inline
#endif

namespace warp {

constexpr int kWeightBits = 15;

// Source pixel of a point on the output's image plane. `H` maps (u, v, 1) of the output to the source camera's ray.
struct Geometry {
  double H[9];
  double fx, fy, cx, cy;
  double D[8];  // k1 k2 p1 p2 k3 k4 k5 k6, OpenCV's rational model; k1..k4 of its fisheye model
  double r2_max;  // squared radius up to which the model grows with the radius; beyond, the polynomial folds the picture back
  int32_t fisheye;  // 1: the equidistant model (Kannala and Brandt 2006)
};

WARP_HD void source_of(const Geometry& g, double u, double v, double* x, double* y, bool* front) {
  const double w = g.H[6] * u + g.H[7] * v + g.H[8];
  *front = w > 1e-9;
  const double a = (g.H[0] * u + g.H[1] * v + g.H[2]) / w;
  const double b = (g.H[3] * u + g.H[4] * v + g.H[5]) / w;
  const double r2 = a * a + b * b;
  *front = *front && r2 <= g.r2_max;
  if (g.fisheye) {
    const double r = sqrt(r2), t = atan(r), t2 = t * t;
    const double bent = t * (1 + t2 * (g.D[0] + t2 * (g.D[1] + t2 * (g.D[2] + t2 * g.D[3]))));
    const double radial = r > 1e-9 ? bent / r : 1.0;
    *x = g.fx * a * radial + g.cx;
    *y = g.fy * b * radial + g.cy;
    return;
  }
  const double r4 = r2 * r2, r6 = r4 * r2;
  const double radial = (1 + g.D[0] * r2 + g.D[1] * r4 + g.D[4] * r6) / (1 + g.D[5] * r2 + g.D[6] * r4 + g.D[7] * r6);
  *x = g.fx * (a * radial + 2 * g.D[2] * a * b + g.D[3] * (r2 + 2 * a * a)) + g.cx;
  *y = g.fy * (b * radial + g.D[2] * (r2 + 2 * b * b) + 2 * g.D[3] * a * b) + g.cy;
}

// One output pixel: `window` source pixels from (x0, y0), `kw` by `kh`, row-major weights. `bgr` swaps the channel order.
WARP_HD void gather(const uint8_t* src, int stride, int x0, int y0, int kw, int kh, const uint16_t* weights, bool bgr, uint32_t sum[3]) {
  uint32_t a = 0, b = 0, c = 0;
  for (int j = 0; j < kh; ++j) {
    const uint8_t* p = src + static_cast<int64_t>(y0 + j) * stride + 3 * x0;
    for (int i = 0; i < kw; ++i, p += 3) {
      const uint32_t w = weights[j * kw + i];
      a += w * p[0];
      b += w * p[1];
      c += w * p[2];
    }
  }
  sum[0] = bgr ? c : a;
  sum[1] = b;
  sum[2] = bgr ? a : c;
}

// Pixel formats of a source and types of an output. Mirrored in __init__.py.
enum Format : int32_t { kRgb = 0, kBgr = 1, kYuyv = 2, kNv12 = 3 };
enum Type : int32_t { kFloat32 = 0, kUint8 = 1, kFloat16 = 2, kInt8 = 3 };

// Everything about one camera that does not change from frame to frame. Mirrored by `_Pass` in __init__.py.
struct Pass {
  int32_t src_w, src_h, n, kw, kh, format, type;
  const int32_t* origin;
  const uint16_t* weights;
  const int16_t* packed;  // host only; null: no vector pass for this table
  float scale[3], bias[3];
};

// Weighted sums of Y, U and V (BT.601, studio range: what V4L2's YUYV and NV12 are) to those of R, G and B. The conversion is
// linear, so it is done once for each output pixel; only its clipping comes after the mean instead of before it.
WARP_HD void rgb_of(uint32_t y, uint32_t u, uint32_t v, uint32_t total, uint32_t sum[3]) {
  const int64_t luma = 76309 * (static_cast<int64_t>(y) - 16 * static_cast<int64_t>(total));
  const int64_t blue = static_cast<int64_t>(u) - 128 * static_cast<int64_t>(total);
  const int64_t red = static_cast<int64_t>(v) - 128 * static_cast<int64_t>(total);
  const int64_t rgb[3] = {luma + 104597 * red, luma - 25675 * blue - 53279 * red, luma + 132201 * blue};
  const int64_t most = 255 * static_cast<int64_t>(total);
  for (int c = 0; c < 3; ++c) {
    const int64_t value = (rgb[c] + 32768) >> 16;
    sum[c] = static_cast<uint32_t>(value < 0 ? 0 : value > most ? most : value);
  }
}

// Packed 4:2:2, two bytes a pixel: Y0 U Y1 V.
WARP_HD void gather_yuyv(const uint8_t* src, int stride, int x0, int y0, int kw, int kh, const uint16_t* weights, uint32_t sum[3]) {
  uint32_t y = 0, u = 0, v = 0, total = 0;
  for (int j = 0; j < kh; ++j) {
    const uint8_t* row = src + static_cast<int64_t>(y0 + j) * stride;
    for (int i = 0; i < kw; ++i) {
      const uint32_t w = weights[j * kw + i];
      const int x = x0 + i;
      const uint8_t* pair = row + 4 * (x >> 1);
      y += w * row[2 * x];
      u += w * pair[1];
      v += w * pair[3];
      total += w;
    }
  }
  rgb_of(y, u, v, total, sum);
}

// A plane of Y, then a plane of U V pairs for 2 by 2 pixels, same stride.
WARP_HD void gather_nv12(const uint8_t* src, int stride, int src_h, int x0, int y0, int kw, int kh, const uint16_t* weights, uint32_t sum[3]) {
  uint32_t y = 0, u = 0, v = 0, total = 0;
  for (int j = 0; j < kh; ++j) {
    const uint8_t* luma = src + static_cast<int64_t>(y0 + j) * stride;
    const uint8_t* chroma = src + static_cast<int64_t>(src_h + ((y0 + j) >> 1)) * stride;
    for (int i = 0; i < kw; ++i) {
      const uint32_t w = weights[j * kw + i];
      const int x = x0 + i;
      y += w * luma[x];
      u += w * chroma[x & ~1];
      v += w * chroma[x | 1];
      total += w;
    }
  }
  rgb_of(y, u, v, total, sum);
}

// Sums of R, G and B of output pixel `i`, whatever the source's format.
WARP_HD void pixel(const Pass& pass, const uint8_t* src, int stride, int64_t i, uint32_t sum[3]) {
  const int x0 = pass.origin[2 * i], y0 = pass.origin[2 * i + 1];
  const uint16_t* weights = pass.weights + i * pass.kw * pass.kh;
  if (pass.format == kYuyv)
    gather_yuyv(src, stride, x0, y0, pass.kw, pass.kh, weights, sum);
  else if (pass.format == kNv12)
    gather_nv12(src, stride, pass.src_h, x0, y0, pass.kw, pass.kh, weights, sum);
  else
    gather(src, stride, x0, y0, pass.kw, pass.kh, weights, pass.format == kBgr, sum);
}

WARP_HD float normalised(uint32_t sum, float scale, float bias) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(static_cast<float>(sum), scale), bias);
#else
  const float product = static_cast<float>(sum) * scale;  // built with -ffp-contract=off: no fused multiply-add
  return product + bias;
#endif
}

// Nearest half, ties to even: IEEE 754 binary16, by hand so that both sides do the same.
WARP_HD uint16_t half_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u, exponent = (bits >> 23) & 0xffu;
  uint32_t mantissa = bits & 0x7fffffu;
  if (exponent == 0xffu) return static_cast<uint16_t>(sign | 0x7c00u | (mantissa ? 0x200u : 0u));
  const int e = static_cast<int>(exponent) - 112;
  if (e >= 31) return static_cast<uint16_t>(sign | 0x7c00u);
  if (e < -10) return static_cast<uint16_t>(sign);
  const int shift = e > 0 ? 13 : 14 - e;
  if (e <= 0) mantissa |= 0x800000u;
  uint32_t half = (e > 0 ? static_cast<uint32_t>(e) << 10 : 0u) + (mantissa >> shift);
  const uint32_t rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
  if (rest > middle || (rest == middle && (half & 1u))) ++half;  // may carry into the exponent, as it should
  return static_cast<uint16_t>(sign | half);
}

// `value` is already in quantisation steps; nearest, ties to even.
WARP_HD int8_t int8_of(float value) {
  const float nearest = rintf(value);
  return static_cast<int8_t>(nearest < -128.0f ? -128.0f : nearest > 127.0f ? 127.0f : nearest);
}

WARP_HD uint8_t rounded(uint32_t sum) { return static_cast<uint8_t>((sum + (1u << (kWeightBits - 1))) >> kWeightBits); }

}  // namespace warp
