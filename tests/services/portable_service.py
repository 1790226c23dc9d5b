"""A portable job service and a pool of external workers on loopback: `python portable_service.py WORKERS`.

Prints the ports of both as one line and serves until it is killed. Beam's own job service always runs one worker, whatever
`direct_num_workers` says: `FnApiRunner.run_via_runner_api`, which it calls, does not read that option. So the number is set here.
Each worker is a separate process, which the pool starts when the job requests it.
"""

from __future__ import annotations

import signal
import sys

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc, beam_job_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor


def job_of(workers: int) -> type[BeamJob]:
    class Job(BeamJob):
        def _invoke_runner(self):
            self.set_state(beam_job_api_pb2.JobState.RUNNING)
            runner = FnApiRunner(provision_info=self._provision_info)
            runner._num_workers = workers
            return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())

    return Job


def start_pool() -> tuple[grpc.Server, int]:
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    pool = BeamFnExternalWorkerPoolServicer(use_process=True, data_buffer_time_limit_ms=-1)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    return server, port


def main() -> None:
    worker_handlers.ExternalWorkerHandler.host_from_worker = lambda self: "localhost"  # whatever the machine is called
    jobs = LocalJobServicer(beam_job_type=job_of(int(sys.argv[1])))
    pool, pool_port = start_pool()
    print(jobs.start_grpc_server(0), pool_port, flush=True)
    signal.sigwait([signal.SIGTERM])
    pool.stop(0)
    jobs.stop()


if __name__ == "__main__":
    main()
