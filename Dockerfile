# docker build -t humanline . && docker run --gpus all -v "$PWD:/work" humanline train --config run.yaml
FROM python:3.11-slim
# Triton compiles the launchers of its kernels with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[train,plot,peft]' && rm -rf /src
WORKDIR /work
ENTRYPOINT ["humanline"]
