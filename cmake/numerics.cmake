# The floating-point flags of the numerics law (N3, docs/numerics.md), for both compilers. Nothing
# else in the build may add one. -fno-trapping-math stands last, because
# -fno-unsafe-math-optimizations undoes it.
set(FUSEDSTEP_CXX_NUMERICS
    -O3 -ffp-contract=off -fno-fast-math -fno-unsafe-math-optimizations -fno-math-errno
    -fno-trapping-math)
set(FUSEDSTEP_CUDA_NUMERICS
    --fmad=false -prec-div=true -prec-sqrt=true -ftz=false)
