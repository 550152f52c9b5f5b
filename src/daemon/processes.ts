/** Finds running daemons through /proc. */
import fs from 'node:fs';
import { isAlive } from '../system/process';
import { type DaemonIdentity, parseDaemonArguments } from './config';
import { LAST_WORDS_LINK } from './last-words';
import { type MountEntry, ownerOf } from './mountinfo';

export interface DaemonProcess extends DaemonIdentity {
  pid: number;
  uid: number;
}

/** The words of a process's command line; empty when it has gone, is a kernel thread, or may not be read. */
function commandLine(pid: number): string[] {
  try {
    const text = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
    return text === '' ? [] : text.replace(/\0$/, '').split('\0');
  } catch {
    // The process ended between the listing and this read.
    return [];
  }
}

export function processIds(): number[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number);
}

export function findDaemons(): DaemonProcess[] {
  return processIds().flatMap((pid) => {
    const identity = parseDaemonArguments(commandLine(pid));
    const uid = identity === undefined || !isAlive(pid) ? undefined : userOf(pid);
    return identity === undefined || uid === undefined ? [] : [{ ...identity, pid, uid }];
  });
}

function userOf(pid: number): number | undefined {
  try {
    return fs.statSync(`/proc/${pid}`).uid;
  } catch {
    return undefined;
  }
}

/**
 * The daemon that serves a mount. Its user must be the mount's owner: anybody can start a process whose command line
 * looks like a daemon's.
 */
export function daemonOf(entry: MountEntry, daemons: DaemonProcess[]): DaemonProcess | undefined {
  return daemons.find((daemon) => daemon.mountpoint === entry.mountpoint && daemon.uid === ownerOf(entry));
}

/** Opens the daemon's last words (see last-words.ts) so that they can be read after it has gone. */
export function openLastWords(pid: number): number | undefined {
  try {
    for (const fd of fs.readdirSync(`/proc/${pid}/fd`)) {
      const link = `/proc/${pid}/fd/${fd}`;
      if (fs.readlinkSync(link).startsWith(LAST_WORDS_LINK)) return fs.openSync(link, 'r');
    }
  } catch {
    // Gone already, or its descriptors are not ours to see: the exit is all that can be reported.
  }
  return undefined;
}
