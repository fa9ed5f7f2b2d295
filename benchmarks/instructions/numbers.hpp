// Inputs made of whole numbers: the same with every library, which std:: distributions are not.
#pragma once
#include <cstdint>

class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}

  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  // About normal, of mean 0 and standard deviation 1: the sum of four numbers. Never 0.
  double spread() {
    const uint64_t b = bits();
    const auto sum = int64_t((b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48));
    return (double(sum) - 131069.5) * (1.7320508075688772 / 65536);
  }

 private:
  uint64_t state_;
};
