/** One who asks for reverts, as a thread of the program that kills the daemon: the time of the answer is known, and nobody else waits for it. */
import * as fs from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';

export interface RevertRequest {
  /** The `.revert` of the snapshot. */
  file: string;
  word: 'now' | 'force';
}

export interface RevertAnswer {
  /** Until the answer, without the attempts before it that were refused. */
  ms: number;
  /** Of the call; absent: it returned well. */
  error?: string;
}

const RETRIES = 500;

function ask({ file, word }: RevertRequest, asked: Int32Array): RevertAnswer {
  const fd = fs.openSync(file, 'w');
  for (let attempt = 0; ; attempt++) {
    const begun = performance.now();
    Atomics.store(asked, 0, 1);
    Atomics.notify(asked, 0);
    let error: string | undefined;
    try {
      fs.writeSync(fd, word);
    } catch (thrown) {
      const { code, message } = thrown as NodeJS.ErrnoException;
      // close(2) returns before the daemon has heard of it.
      if (code === 'EBUSY' && attempt < RETRIES) {
        Atomics.wait(asked, 1, 0, 1);
        continue;
      }
      error = message;
    }
    const ms = performance.now() - begun;
    closeDead(fd);
    return error === undefined ? { ms } : { ms, error };
  }
}

/** Closes a file whose daemon may be dead: the answer of its write counts, not that of the close. */
export function closeDead(fd: number): void {
  try {
    fs.closeSync(fd);
  } catch (error) {
    if (!/ENOTCONN|ECONNABORTED/.test(String(error))) throw error;
  }
}

const port = parentPort;
if (port !== null) {
  port.on('message', (request: RevertRequest) => port.postMessage(ask(request, workerData as Int32Array)));
  port.postMessage('ready');
}
