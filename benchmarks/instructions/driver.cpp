// Runs one case with one instruction set: `driver CASE SET`. Alone, it lists them. Callgrind counts what `measured` does.
#include <cstdio>

#include "cases.hpp"
#include "field/sweep.hpp"

namespace pfgm {
// Valgrind's processor has no AVX-512: field.cpp knows these kernels by name and never calls them.
extern const InstructionSet instruction_set_avx512;
const InstructionSet instruction_set_avx512{"", {}, {}};
}  // namespace pfgm

namespace {

constexpr const char* SETS[] = {"base", "avx2"};
enum Outcome { DONE = 0, WRONG = 1, USAGE = 2, CANNOT_RUN = 3 };

// What a process does once, in its first parallel region, belongs to no case.
void start_threads() {
  const float x = 0.5f, data[] = {0.25f, 0.75f};
  const double scale = 1, center = 0.5;
  float mean;
  double log_sum;
  pfgm::posterior_float({1, 2, 1, &x, &scale, data, pfgm::Element::f32, &center, nullptr, nullptr, 1, &mean, &log_sum, 1, nullptr});
}

}  // namespace

extern "C" __attribute__((noinline)) void measured(const std::function<void()>& work) {
  work();
  asm volatile("" ::: "memory");  // a call at the very end would be a jump, which Callgrind takes for the end of this function
}

int main(int count, char** words) {
  std::vector<Case> cases = field_cases();
  for (Case& one : ode_cases()) cases.push_back(std::move(one));
  if (count == 1) {
    for (const Case& one : cases)
      for (const char* set : SETS)
        if (one.every_set || set == SETS[0]) std::printf("%s %s\n", one.name.c_str(), set);
    return DONE;
  }
  for (const Case& one : cases) {
    if (count != 3 || one.name != words[1]) continue;
    if (!pfgm::select_instruction_set(words[2])) {
      std::fprintf(stderr, "this processor, as Valgrind shows it, has no %s\n", words[2]);
      return CANNOT_RUN;
    }
    start_threads();
    const Job job = one.prepare();
    measured(job.work);
    if (job.right()) return DONE;
    std::fprintf(stderr, "%s on %s: the result is wrong\n", words[1], words[2]);
    return WRONG;
  }
  std::fprintf(stderr, "usage: driver [CASE SET]\n");
  return USAGE;
}
