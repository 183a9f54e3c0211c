# SPDX-License-Identifier: MIT
# Sets BUTTERFLY_NATIVE_FLAGS to the flag that compiles for this machine's CPU, or to nothing. A compiler may not know
# the flag, and under some hypervisors and emulators it names instructions that the CPU then refuses: so it is tried.
include(CheckCXXSourceRuns)

set(BUTTERFLY_NATIVE_FLAGS "")
foreach(flag -march=native -mcpu=native)
  string(MAKE_C_IDENTIFIER "BUTTERFLY_RUNS${flag}" runs)
  set(CMAKE_REQUIRED_FLAGS "${flag} -O3")
  check_cxx_source_runs(
    "int main(int argc, char**) {
       float x[256];
       unsigned long n[256];
       for (int i = 0; i < 256; ++i) { x[i] = float(i * argc) * 0.5F; n[i] = static_cast<unsigned long>(i) << argc; }
       float sum = 0; unsigned long count = 0;
       for (int i = 0; i < 256; ++i) { sum += x[i] * x[255 - i]; count += n[i] ^ (n[255 - i] >> 3); }
       return sum > 0 && count > 0 ? 0 : 1;
     }" ${runs})
  unset(CMAKE_REQUIRED_FLAGS)
  if(${runs})
    set(BUTTERFLY_NATIVE_FLAGS ${flag})
    break()
  endif()
endforeach()
if(NOT BUTTERFLY_NATIVE_FLAGS)
  message(STATUS "butterfly: no flag for this machine's CPU runs here; building for the compiler's default")
endif()
