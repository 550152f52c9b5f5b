/** The threads that V8 has started before any of ours: they compile what runs often, and collect garbage. */
import fs from 'node:fs';
import os from 'node:os';

/**
 * In the first second of a mount they want a third of two processors, while each request is already waited for. They get about a tenth
 * of what a worker gets on a processor that both want, and all of one that is idle. Not the least there is: a mount that is busy from
 * its first moment must come to its fast code, too.
 */
const NICER_BY = 10;

/** To be called before threads are started that serve: all but the caller give way from then on. setpriority(2) takes thread ids. */
export function letCompilersGiveWay(): void {
  // Whoever starts imagefs with nice(1) has lowered all of it.
  const niceness = Math.min(os.getPriority() + NICER_BY, os.constants.priority.PRIORITY_LOW);
  for (const tid of fs.readdirSync('/proc/self/task').map(Number)) {
    if (tid === process.pid) continue;
    try {
      os.setPriority(tid, niceness);
    } catch {
      // Forbidden in some sandbox: the first second is slower, and nothing else.
    }
  }
}
