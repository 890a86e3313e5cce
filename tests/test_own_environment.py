"""Tasks of the user's own for reinforcement learning: the README's example, as it stands there."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def added(tmp_path):
    """A copy of the program in which the README's environment was added."""
    for path in [*ROOT.glob('*.py'), *ROOT.glob('rl/**/*.py'), ROOT / 'results' / 'paper_returns.json']:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    readme = (ROOT / 'README.md').read_text()
    code = re.search(r'```python\n# (rl/envs/.*?)\n(.*?)```', readme, re.DOTALL)
    (tmp_path / code[1]).write_text(code[2])
    line = re.search(r"`('swimmer_vel': Family.*?,)`", readme, re.DOTALL)[1]
    module = tmp_path / 'rl' / 'envs' / '__init__.py'
    text = module.read_text().replace('FAMILIES = {', 'FAMILIES = {\n    ' + line)
    module.write_text(text.replace('\n\n\nclass', '\nfrom rl.envs.swimmer import SwimmerVelEnv\n\n\nclass', 1))
    experiments = tmp_path / 'experiments.py'
    experiments.write_text(experiments.read_text().replace("['point', ", "['swimmer_vel', 'point', "))


def test_the_readmes_environment_is_trained_tested_and_drawn(tmp_path):
    added(tmp_path)
    flags = ['--datasource=swimmer_vel', '--metatrain_iterations=1', '--meta_batch_size=2', '--update_batch_size=2']
    flags += ['--num_test_tasks=3', '--test_num_updates=1', '--test_update_batch_size=2']
    command = [sys.executable, 'main.py', *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr.count('Traceback'), done.stdout + done.stderr
    (path,) = tmp_path.glob('logs/swimmer_vel/*/test*.json')
    result = json.loads(path.read_text())
    assert all(-0.2 <= task <= 0.2 for task in result['tasks']) and len(result['mean']) == 2
    assert all(mean < 0 for mean in result['mean']) and path.with_suffix('.png').exists()
