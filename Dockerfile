# One image for the backend (`lookalike serve`) and the workers (`lookalike work`).
FROM python:3.12-slim

# For a smaller image without CUDA, build with the package index of PyTorch's CPU builds:
#   docker build --build-arg TORCH_ARGS="--index-url <see pytorch.org, Get started>" .
ARG TORCH_ARGS=""

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lookalike lookalike
COPY backend backend
COPY workers workers
COPY label_config label_config
RUN pip install --constraint constraints.txt ${TORCH_ARGS} torch \
 && pip install --constraint constraints.txt --editable '.[postgresql]' \
 && useradd --create-home --uid 1000 lookalike \
 && install -d -o lookalike -g lookalike /data

USER lookalike
ENV LOOKALIKE_DATA_DIR=/data
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=2)"
CMD ["lookalike", "serve"]
