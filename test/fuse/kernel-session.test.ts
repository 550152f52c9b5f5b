import test from 'ava';
import { hasSharedDirectMappings } from './harness';
import { sessionSuite } from './session-suite';

sessionSuite(test, {
  session: 'kernel',
  carries: { fallocate: true, lseek: true, syncOfOneWrite: true, sharedMapping: hasSharedDirectMappings() },
  cases: 21,
});
