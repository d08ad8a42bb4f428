# The CPU build. docker build -t sia-local . && docker run -p 8080:8080 sia-local
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# llama.cpp first: it takes minutes and changes least. Without AMX, as the Makefile says.
ENV CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
RUN python -m venv /opt/sia && /opt/sia/bin/pip install --no-cache-dir llama-cpp-python==0.3.36
COPY . .
RUN /opt/sia/bin/pip install --no-cache-dir ".[server]"

FROM python:3.12-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home sia
COPY --from=build /opt/sia /opt/sia
COPY models/demo-base.gguf models/demo-value.gguf models/demo-value.profile.toml /models/
USER sia
ENV SIA_MODELS=/models SIA_HOST=0.0.0.0 SIA_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["/opt/sia/bin/python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['SIA_PORT'] + '/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/sia/bin/sia-local", "serve"]
