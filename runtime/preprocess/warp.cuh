// Pre-processing, one source for host (C++17) and device (CUDA): undistort, re-project, resize by area, normalise, NCHW.
//
// The geometry is folded once into a footprint table: for every output pixel a window of source pixels and their weights.
// Weights are 15-bit fixed point and sums are integers, so host and device agree bit for bit whatever the compiler does;
// only the last step, value * scale + bias, is floating point, with one rounding after each operation on both sides.
#pragma once
#include <cstdint>

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
  double D[8];  // k1 k2 p1 p2 k3 k4 k5 k6, OpenCV's rational model
};

WARP_HD void source_of(const Geometry& g, double u, double v, double* x, double* y, bool* front) {
  const double w = g.H[6] * u + g.H[7] * v + g.H[8];
  *front = w > 1e-9;
  const double a = (g.H[0] * u + g.H[1] * v + g.H[2]) / w;
  const double b = (g.H[3] * u + g.H[4] * v + g.H[5]) / w;
  const double r2 = a * a + b * b, r4 = r2 * r2, r6 = r4 * r2;
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

WARP_HD float normalised(uint32_t sum, float scale, float bias) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(static_cast<float>(sum), scale), bias);
#else
  const float product = static_cast<float>(sum) * scale;  // built with -ffp-contract=off: no fused multiply-add
  return product + bias;
#endif
}

WARP_HD uint8_t rounded(uint32_t sum) { return static_cast<uint8_t>((sum + (1u << (kWeightBits - 1))) >> kWeightBits); }

}  // namespace warp
