#!/usr/bin/env bash
# Builds the engine for NVIDIA GPUs and runs its tests: what needs a GPU says so and is skipped where there is none.
# Needs Rust, Python 3 and a C++ compiler. Without a CUDA toolkit, the compiler and libraries come from Python's registry;
# without a driver, a stand-in that knows no GPU takes its place.
#   CUDA_COMPUTE_CAP  the GPU's generation: 86 (default), 90 for Hopper, …
#   CUDA_HOME         an installed toolkit to build with
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-86}
target=${CUDA_TARGET_DIR:-$PWD/target/cuda}

# cudarc 0.19 knows CUDA 13.4 and earlier; all parts must be of one version.
if [ -z "${CUDA_HOME:-}" ]; then
    if [ ! -e "$target/venv/ready" ]; then
        echo "== the CUDA compiler"
        mkdir -p "$target"
        python3 -m venv "$target/venv"
        "$target/venv/bin/pip" install --quiet --disable-pip-version-check \
            nvidia-{cuda-nvcc,cuda-crt,cuda-runtime,cuda-cccl,cuda-nvrtc,nvvm,cublas}==13.0.* nvidia-curand
        touch "$target/venv/ready"
    fi
    CUDA_HOME=$(echo "$target"/venv/lib/python3*/site-packages/nvidia/cu13)
    export CUDA_HOME
    # The packages bring libraries by their version only; linking asks for them without it.
    for library in "$CUDA_HOME"/lib/lib{cublas,cublasLt,cudart,curand,nvrtc}.so.*; do
        ln -sf "$(basename "$library")" "${library%.so.*}.so"
    done
fi
export CUDA_PATH=$CUDA_HOME PATH=$CUDA_HOME/bin:$PATH

libraries=$CUDA_HOME/lib:$CUDA_HOME/lib64
if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    echo "== no driver here: a stand-in that knows no GPU"
    mkdir -p "$target/driver"
    # Every function of the driver answers CUDA_ERROR_NO_DEVICE.
    grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+|_ptsz|_ptds)*\b' "$CUDA_HOME/include/cuda.h" | sort -u |
        sed 's/.*/int &(void) { return 100; }/' > "$target/driver/cuda.c"
    cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$target/driver/libcuda.so.1" "$target/driver/cuda.c"
    ln -sf libcuda.so.1 "$target/driver/libcuda.so"
    libraries=$libraries:$target/driver
    export LIBRARY_PATH=$target/driver${LIBRARY_PATH:+:$LIBRARY_PATH}
fi
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

echo "== the engine for GPUs of generation $CUDA_COMPUTE_CAP"
cargo test --locked --release --package postern-engine --features cuda --target-dir "$target" --lib "$@"
