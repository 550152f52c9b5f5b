/**
 * Named debug channels: `DEBUG=imagefs:*`. Never a bare `DEBUG=*`: fuse-native then turns on libfuse's own debug output.
 * Check `.enabled` before building an argument on a path that runs for every request.
 */
import createDebug from 'debug';

export type Log = createDebug.Debugger;

/** @param area one of the folders of src/, e.g. `fuse:kernel` */
export function logOf(area: string): Log {
  return createDebug(`imagefs:${area}`);
}
