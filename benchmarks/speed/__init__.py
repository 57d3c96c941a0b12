"""How fast a training step is, beside the peers' on the same GPU in the same run.

python -m benchmarks.speed run            every section of sections.py, then docs/speed.md
python -m benchmarks.speed run headline-1 --seconds 420
python -m benchmarks.speed run second-job   a worker's next job: seconds to its first step
python -m benchmarks.speed table          docs/speed.md from the results that there are
python -m benchmarks.speed profile --method lora --batch-size 1
python -m benchmarks.speed sampling       pictures by diffusers' pipeline and by ours
python -m benchmarks.speed whole FOLDER   whole runs: first step, last picture, memory
python -m benchmarks.speed scale --gpus 2   one run on several GPUs against one
python -m benchmarks.speed subjects --gpus 2   a batch on Ray: subjects an hour against one GPU's
python -m benchmarks.speed cpu            our step against PEFT's on the embedded base
"""
