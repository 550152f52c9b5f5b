/**
 * What the command tells the daemon. It travels as one line of JSON over the control socket (descriptor 3), except for
 * the words that `imagefs list` and `imagefs umount` look for, which stand on the daemon's command line: no state file
 * is needed, and nothing can go stale.
 */
import type { SessionKind } from '../fuse/session';

/** Descriptor of the control socket in the daemon. */
export const CONTROL_FD = 3;

/** One image of a mount. */
export interface ImageSource {
  /** Absolute. */
  path: string;
  /** The user's or the directory's word for the format; absent: probed. */
  format?: string;
}

export interface DaemonConfig {
  mountpoint: string;
  /** As shown in /proc/mounts. */
  source: string;
  sources: ImageSource[];
  /** One image was named as a file: its tree is the root, and it must open. Otherwise a folder each. */
  single: boolean;
  readOnly: boolean;
  /** FUSE worker threads. */
  threads: number;
  /** As many may be added while all of them wait for the host's disk. */
  threadsMax: number;
  session: SessionKind;
  /** Bytes for cached tables, shared by all images. */
  cacheSize: number;
  backing: 'directory' | 'any';
  growable: boolean;
  kernelCache: boolean;
  allowOther: boolean;
  /** Read beside writers. */
  forceShare: boolean;
  /** Write raw images beside other writers. */
  shareRw: boolean;
  /** Passed to the kernel: noexec, noatime, ... */
  flags: string[];
  foreground: boolean;
  debug: boolean;
  /** File for log lines of a daemon without terminal. */
  log?: string;
  /** Only tests set this; no option of the command line reaches it. */
  testing?: TestingConfig;
}

export interface TestingConfig {
  /** A worker that is asked for this name in the root directory ends as if it had crashed. */
  workerDiesAtLookup?: string;
  /** The flusher thread ends as if it had crashed once a file of this name exists. */
  flusherDiesAtFile?: string;
}

/** From the daemon to the command, one line of JSON each. */
export type DaemonMessage =
  | { kind: 'mounted'; warnings: string[] }
  | { kind: 'failed'; code: string; message: string; stack?: string };

const MARKER = 'imagefs-daemon';

/** Words after `node .../daemon/main.js`. */
export function daemonArguments(config: DaemonConfig, named: string[]): string[] {
  return [MARKER, config.mountpoint, config.session, config.readOnly ? 'ro' : 'rw', '--', ...named];
}

export interface DaemonIdentity {
  mountpoint: string;
  session: SessionKind;
  readOnly: boolean;
  /** What the user named: images or directories, absolute. */
  named: string[];
}

/** Recognises a daemon by its command line (the words of /proc/PID/cmdline). */
export function parseDaemonArguments(words: string[]): DaemonIdentity | undefined {
  const at = words.indexOf(MARKER);
  if (at < 2 || !words[at - 1]?.endsWith('/daemon/main.js')) return undefined;
  const [mountpoint, session, mode, dashes, ...named] = words.slice(at + 1);
  if (mountpoint === undefined || dashes !== '--' || (session !== 'kernel' && session !== 'native')) return undefined;
  return { mountpoint, session, readOnly: mode === 'ro', named };
}
