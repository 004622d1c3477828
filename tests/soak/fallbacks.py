"""python -m tests.soak.fallbacks: every way of two machines that silently trains two models, started on purpose.

Each is started on two hosts (network namespaces, see tests.soak.hosts). Both must refuse, train nothing and name the
command to run instead, or come up as the one world that was asked for. Prints one JSON line per case.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import tiny
from tests.end_to_end.runs import write_run
from tests.soak.hosts import MASTER, Hosts, missing, show

YAMLS = {
    "MULTI_CPU": "distributed_type: MULTI_CPU\nuse_cpu: true\n",
    "MULTI_GPU with use_cpu": "distributed_type: MULTI_GPU\nuse_cpu: true\n",
    "FSDP": "distributed_type: FSDP\nfsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD}\n",
}
FLAGS = {"--cpu": ["--cpu"], "without --multi_gpu": []}


def main() -> None:
    if missing():
        sys.exit(missing())
    with tempfile.TemporaryDirectory(prefix="embedfleet-fallbacks-") as name, Hosts(2) as hosts:
        folder = Path(name)
        run_file = write_run(folder, tiny.model(folder / "bert"), tiny.shards(folder / "shards", 82))
        for number, case in enumerate((*FLAGS, *YAMLS)):
            began = time.monotonic()
            flags = ["--num_machines", "2", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
            flags += ["--main_process_ip", MASTER, "--main_process_port", str(29500 + number), *FLAGS.get(case, [])]
            if case in YAMLS:
                (folder / "case.yaml").write_text(f"num_machines: 2\nmixed_precision: 'no'\n{YAMLS[case]}")
                flags += ["--config_file", str(folder / "case.yaml")]
            argv = [sys.executable, "-m", "accelerate.commands.launch", *flags]
            trainer = ["-m", "trainer", "--config", str(run_file), "train.device=cpu"]
            both = [
                hosts.start(host, [*argv, "--machine_rank", str(host - 1), *trainer])
                for host in range(1, hosts.count + 1)
            ]
            codes = [one.end(400) for one in both]
            if any(f"over {hosts.count} process(es)" in one.said() for one in both):
                assert codes == [0] * hosts.count and (folder / "out" / "final").exists(), case
                shutil.rmtree(folder / "out")
                show(case=case, exit_codes=codes, one_world_of=hosts.count, seconds=round(time.monotonic() - began))
                continue
            for one, code in zip(both, codes):
                assert code != 0, f"{case}: exit code 0\n{one.said()[-3000:]}"
            told = [one.said() for one in both if "Nothing was trained" in one.said()]
            assert told and all("Run instead: python -m launch run" in said for said in told), both[0].said()[-3000:]
            assert not (folder / "out").exists(), case
            show(case=case, exit_codes=codes, hosts_that_told=len(told), seconds=round(time.monotonic() - began))


if __name__ == "__main__":
    main()
