import test from 'ava';
import { sessionSuite } from './session-suite';

// The fuse-native package knows no FALLOCATE, LSEEK or COPY_FILE_RANGE, hands on no flags of a single write, and its direct I/O allows
// no shared mapping.
sessionSuite(test, {
  session: 'native',
  carries: { fallocate: false, lseek: false, syncOfOneWrite: false, sharedMapping: false },
  cases: 21,
});
