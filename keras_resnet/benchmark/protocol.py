"""The process side of a benchmark: answers requests on standard input. It needs Python's standard library only.

Requests and answers are lines of JSON: first a Job, answered by the network's name; then requests for a number of steps
of a task, answered by the seconds they took. So environments without this package's requirements can take part.
"""

import json
import os
import sys


def serve(create, measure):
    """Answers requests until standard input ends.

    What libraries print goes to standard error.

    Args:
        create: function of a dict of the fields of a Job that returns a network, which has a `name`.
        measure: function of the network, and of `task` and `steps`, that returns a dict of JSON values.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    network = create(json.loads(sys.stdin.readline()))
    answer(network=network.name)
    for request in sys.stdin:
        answer(**measure(network, **json.loads(request)))
